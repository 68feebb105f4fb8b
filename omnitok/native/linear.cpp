// Linear layers with what stands before and after them, over strips of 32 tokens.
//
// A thread takes a few strips at a time: normalised once, multiplied by panels of 32 columns of the
// weights, and finished (bias, gate, residual stream, rotation) before they leave its cache. In a
// feed-forward half the hidden values never leave it at all.
//
// In bfloat16 the weights come in tiles. In float32 they are split and put into tiles for every
// call, some panels at a time and by all threads together, which costs less than a tenth of what is
// done with them: kept, they would take one and a half times the memory of the weights once more.

#include <omp.h>

#include <algorithm>

#include "heads.h"
#include "pixels.h"
#include "rows.h"
#include "tiles.h"

namespace {

// What stays in a processor's caches, by type: bytes of strips and of weights; and the most steps of
// a strip that meet one panel after the other.
template <class T>
constexpr int64_t kHeld = kParts<T> == 1 ? 3 << 19 : 1 << 20;
template <class T>
constexpr int64_t kWeights = kParts<T> == 1 ? 1 << 18 : 1 << 19;
constexpr int64_t kSteps = 48;
constexpr int64_t kTogether = 1 << 23;  // bytes of float32 weights in tiles
constexpr int64_t kPanels = 16;         // at a time
constexpr int64_t kStrips = 8;          // at a time; more gain nothing

// Two neighbouring vectors of a row of a product, biased and activated.
template <int act, bool exact>
inline void finish(const float* c, const float* c2, const float* bias, const float* bias2,
                   __m512 y[2]) {
  for (int j = 0; j < 2; ++j) {
    __m512 a = _mm512_loadu_ps(c + 16 * j);
    if (bias) a = _mm512_add_ps(a, _mm512_loadu_ps(bias + 16 * j));
    if (act == kSwiglu || act == kGeglu) {
      __m512 b = _mm512_loadu_ps(c2 + 16 * j);
      if (bias2) b = _mm512_add_ps(b, _mm512_loadu_ps(bias2 + 16 * j));
      y[j] = act == kSwiglu ? _mm512_mul_ps(silu<exact>(a), b)
                            : _mm512_mul_ps(a, gelu_erf<exact>(b));
    } else {
      y[j] = act == kGeluTanh ? gelu_tanh<exact>(a) : a;
    }
  }
}

// What becomes of a 32 x 32 product (or two, if gated), some rows at a time.
template <class T, int act>
class Finish {
 public:
  Finish(const LinearCall<T>& call, int64_t columns, bf16* hidden)
      : call_(call), columns_(columns), hidden_(hidden) {}

  // The product of panel `p` and of strip `s`, counted from strip `start`.
  void begin(const float* c, const float* c2, int64_t start, int64_t s, int64_t p) {
    constexpr bool gated = act == kSwiglu || act == kGeglu;
    c_ = c, c2_ = c2, next_ = 0, p_ = p;
    row_ = (start + s) * kRows;
    rows_ = hidden_ ? kRows : std::min<int64_t>(kRows, call_.rows - row_);
    bias_ = call_.bias ? call_.bias + p * 32 * (gated ? 2 : 1) : nullptr;
    bias2_ = call_.bias ? bias_ + 32 : nullptr;
    if (hidden_) place_ = hidden_ + (s * up(columns_, 32) + p) * 2 * kTile;
  }

  void rows(int64_t many) {
    for (const int64_t stop = std::min(next_ + many, rows_); next_ < stop; ++next_) row(next_);
  }

 private:
  void row(int64_t r) {
    __m512 y[2];
    finish<act, sizeof(T) == 4>(c_ + r * 32, c2_ + r * 32, bias_, bias2_, y);
    if (hidden_) {
      store(place_ + r * kStep, y[0], y[1]);
      return;
    }
    const int64_t at = (row_ + r) * call_.out_stride + p_ * 32;
    const __mmask16 m0 = first(columns_ - p_ * 32), m1 = first(columns_ - p_ * 32 - 16);
    if (call_.residual) {
      const T* x = call_.residual + p_ * 32 +
                      (call_.onto_order ? call_.onto_order[row_ + r] : row_ + r) * call_.out_stride;
      y[0] = _mm512_add_ps(y[0], load(x, m0));
      y[1] = _mm512_add_ps(y[1], load(x + 16, m1));
    }
    if (m1 == 0xffff) {
      store(call_.out + at, y[0], y[1]);
    } else {
      store(call_.out + at, y[0], m0);
      store(call_.out + at + 16, y[1], m1);
    }
  }

  const LinearCall<T>& call_;
  const int64_t columns_;
  bf16* const hidden_;
  const float *c_ = nullptr, *c2_ = nullptr, *bias_ = nullptr, *bias2_ = nullptr;
  bf16* place_ = nullptr;
  int64_t row_ = 0, rows_ = 0, next_ = 0, p_ = 0;
};

// Panels `first_panel` to `end_panel` of a layer over strips in tiles, to tiles again if `hidden` is
// given, else to the result. `weight` are the tiles of the first of them; `c` has room for kPanels
// pairs of products.
//
// A part of a strip that stays in the first-level cache meets one panel after the other. A product
// is finished while the tiles of the next one are multiplied.
template <class T, int act>
void stage(const LinearCall<T>& call, const bf16* tiles, int64_t start, int64_t strips,
           int64_t columns, const bf16* weight, int64_t first_panel, int64_t end_panel,
           bf16* hidden, float* c) {
  constexpr int64_t each = act == kSwiglu || act == kGeglu ? 2 : 1;  // products of a panel
  constexpr int64_t product = 32 * 32, step = kParts<T> * 2 * kTile;
  const int64_t steps = up(call.width, kStep);
  const int64_t panel = steps * step, parts = up(steps, kSteps);
  const int64_t group = std::clamp<int64_t>(kWeights<T> / (panel * 2 * each), 1, kPanels);
  Finish<T, act> finish(call, columns, hidden);
  int64_t turn = 0;
  for (int64_t from = first_panel; from < end_panel; from += group) {
    const int64_t many = std::min(group, end_panel - from);
    // the next weights come into the cache meanwhile, some lines in each step
    const int64_t next = from + group < end_panel ? from + group : first_panel;
    const char* ahead = (const char*)(weight + (next - first_panel) * panel * each);
    const int64_t lines = std::min(group, end_panel - next) * panel * each / 32;
    const int64_t some = up(lines, many * each * steps * strips);
    const char* const stop = ahead + lines * 64;
    for (int64_t s = 0; s < strips; ++s) {
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t begin = steps * part / parts, end = steps * (part + 1) / parts;
        const bool last = part == parts - 1;
        const int64_t rows = up(kRows, (end - begin) * each);  // to finish in a step
        for (int64_t p = 0; p < many; ++p) {
          // one part: two products by turns; more: as many as there are panels
          float* now = c + (parts > 1 ? p : turn++ % 2) * 2 * product;
          const bf16* b = weight + (from - first_panel + p) * panel * each + begin * step;
          const bf16* a = tiles + s * panel + begin * step;
          for (int64_t i = 0; i < each; ++i)
            multiply<kParts<T>>(a, b + i * panel, end - begin, now + i * product, 32, part > 0,
                                [&] {
                                  finish.rows(rows);
                                  if (kParts<T> == 1)
                                    for (int64_t i = 0; i < some && ahead < stop; ++i, ahead += 64)
                                    _mm_prefetch(ahead, _MM_HINT_T1);
                                });
          if (last) {
            finish.rows(kRows);
            finish.begin(now, now + product, start, s, from + p);
          }
        }
        if (last && parts > 1) finish.rows(kRows);  // its product is needed for the next strip
      }
    }
  }
  finish.rows(kRows);
}

template <class T, class... Rest>
void run(const LinearCall<T>& call, Rest... rest) {
  switch (call.act) {
    case kGeluTanh: return stage<T, kGeluTanh>(call, rest...);
    case kSwiglu: return stage<T, kSwiglu>(call, rest...);
    case kGeglu: return stage<T, kGeglu>(call, rest...);
    default: return stage<T, kLinear>(call, rest...);
  }
}

// In bfloat16.
int run_all(const LinearCall<bf16>& call) {
  const int64_t strips = up(call.rows, kRows), steps = up(call.width, kStep);
  const int64_t steps2 = call.weight2 ? up(call.hidden, kStep) : 0;
  const bool away = call.rings || call.out_pixels;  // whether results leave where they are computed
  const int64_t kept = away ? up(call.columns, kStep) : 0;  // steps that they take
  const int64_t strip_bytes = kRows * kStep * 2 * (steps + steps2 + kept);
  const int64_t at_once = std::clamp<int64_t>(kHeld<bf16> / strip_bytes, 1, kStrips);
  int failed = 0;
#pragma omp parallel num_threads(call.threads) reduction(| : failed)
  {
    const int64_t threads = omp_get_num_threads(), mine = omp_get_thread_num();
    const int64_t from = strips * mine / threads, to = strips * (mine + 1) / threads;
    static thread_local Room room, products, row;
    float* c = products.of<float>(kPanels * 2 * 32 * 32);
    bf16* patch = row.of<bf16>(call.width);
    bf16* tiles = room.of<bf16>(at_once * (steps + steps2 + kept) * 2 * kTile);
    failed = !tiles || !c || !patch;
    if (!failed && from < to) {
      Tiles configured;
      bf16* hidden = tiles + at_once * steps * 2 * kTile;
      LinearCall<bf16> second = call, only = call;
      second.bias = call.bias2, second.width = call.hidden, second.act = kLinear;
      if (away) only.out_stride = call.columns;
      const int64_t panels = up(call.weight2 ? call.hidden : call.columns, 32);
      for (int64_t start = from; start < to; start += at_once) {
        const int64_t many = std::min(at_once, to - start), zero = 0;
        pack(call, start, many, tiles, patch);
        if (call.weight2) {
          run(call, tiles, start, many, call.hidden, call.weight, zero, panels, hidden, c);
          run(second, hidden, start, many, call.columns, call.weight2, zero, up(call.columns, 32),
              (bf16*)nullptr, c);
        } else {
          if (away) only.out = hidden - start * kRows * call.columns;
          run(only, tiles, start, many, call.columns, call.weight, zero, panels, (bf16*)nullptr, c);
        }
        const int64_t first_row = start * kRows;
        const int64_t rows = std::min(many * kRows, call.rows - first_row);
        if (call.heads) place(call, only.out + first_row * call.columns, first_row, rows);
        if (call.out_pixels)
          for (int64_t i = first_row; i < first_row + rows; ++i)
            copy_patch<true>(*call.out_pixels, i, only.out + i * call.columns);
      }
    }
  }
  return failed;
}

// In float32: some panels at a time are put into tiles, and then meet all rows.
int run_all(const LinearCall<float>& call) {
  constexpr int64_t step = 3 * 2 * kTile;
  const int64_t strips = up(call.rows, kRows), steps = up(call.width, kStep);
  const int64_t each = call.act == kSwiglu || call.act == kGeglu ? 2 : 1;
  const int64_t at_once = std::clamp<int64_t>(kHeld<float> / (steps * step * 2), 1, kStrips);
  const int64_t panels = up(call.columns, 32), panel = steps * step;
  const int64_t together = std::clamp<int64_t>(kTogether / (panel * each * 2), 1, panels);
  bf16* weight = (bf16*)std::aligned_alloc(64, together * panel * each * 2);
  int failed = !weight;
#pragma omp parallel num_threads(call.threads) reduction(| : failed)
  {
    const int64_t threads = omp_get_num_threads(), mine = omp_get_thread_num();
    const int64_t from = strips * mine / threads, to = strips * (mine + 1) / threads;
    static thread_local Room room, products, row;
    float* c = products.of<float>(kPanels * 2 * 32 * 32);
    float* patch = row.of<float>(call.width);
    bf16* tiles = room.of<bf16>(at_once * steps * step);
    failed = !weight || !tiles || !c || !patch;
    Tiles configured;
    for (int64_t begin = 0; begin < panels; begin += together) {
      const int64_t end = std::min(begin + together, panels);
#pragma omp for schedule(static)
      for (int64_t i = begin * each; i < end * each; ++i) {
        // the panels of both halves of a gated layer, by turns
        const int64_t half = i % each * call.columns, column = i / each * 32;
        if (weight)
          pack_panel(call.weight, call.width, call.weight_stride, half + column, half + call.columns,
                     weight + (i - begin * each) * panel);
      }
      for (int64_t start = from; start < to && !failed; start += at_once) {
        const int64_t many = std::min(at_once, to - start);
        pack(call, start, many, tiles, patch);
        run(call, tiles, start, many, call.columns, weight, begin, end, (bf16*)nullptr, c);
        const int64_t first_row = start * kRows;
        const int64_t rows = std::min(many * kRows, call.rows - first_row);
        if (call.heads && end == panels)
          place(call, call.out + first_row * call.columns, first_row, rows);
      }
#pragma omp barrier
    }
  }
  std::free(weight);
  return failed;
}

}  // namespace

// Each returns 0, or 1 where there is no memory.
extern "C" int omnitok_linear(const LinearCall<bf16>* call) { return run_all(*call); }

extern "C" int omnitok_linear_float32(const LinearCall<float>* call) { return run_all(*call); }

// Asks the system for the right to use tiles; returns whether this process has it.
extern "C" int omnitok_tiles(void) {
  constexpr long kRequest = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}
