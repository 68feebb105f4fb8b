// Softmax attention of queries over all keys, in strips of 32 queries and blocks of keys.
//
// Dao et al. 2022, arXiv:2205.14135, algorithm 1, over blocks that are as long as a whole window
// wherever that fits a cache, so that most softmaxes are done in one go.

#include <omp.h>

#include <algorithm>

#include "tiles.h"

// One call; the same in omnitok/native/calls.py. The last axis of everything is contiguous.
template <class T>
struct AttentionCall {
  const T* q;             // [items, heads, queries, width]
  const T* k;             // [items, heads, keys, width]
  const T* v;
  T* out;                 // [items, heads, queries, width]
  const float* bias;      // [heads, queries, keys] added to the scores, or null
  int64_t items, heads, queries, keys, width;
  int64_t q_strides[3];   // of items, heads, tokens
  int64_t k_strides[3];
  int64_t v_strides[3];
  int64_t out_strides[3];
  int64_t threads;
  float scale;            // of the scores
  float bound;            // that no scaled score exceeds by much, or 0 where none is known
};

namespace {

constexpr int64_t kBlock = 256;  // keys at a time: scores of a strip that stay in a first-level cache
template <class T>
constexpr int64_t kPair = kParts<T> * 2 * kTile;  // numbers in the tiles of 32 times 32 numbers

struct Sizes {
  int64_t steps;   // of 32 numbers, of a head
  int64_t panels;  // of 32 columns, of a head
  int64_t blocks;  // of 32 keys, of all keys
};

// 32 neighbours, or the first `count` and zeros, in parts.
template <class T>
inline void read(const T* x, int64_t count, __m512i parts[kParts<T>]) {
  split<kParts<T>>(load(x, first(count)), load(x + 16, first(count - 16)), parts);
}

// Keys as right tiles of q k^T: [keys / 32][steps][parts][2] tiles.
template <class T>
void pack_keys(const T* k, int64_t stride, int64_t keys, int64_t width, const Sizes& sizes,
               bf16* tiles) {
  for (int64_t b = 0; b < sizes.blocks; ++b) {
    for (int64_t step = 0; step < sizes.steps; ++step, tiles += kPair<T>) {
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t from = b * 32 + half * 16;
        if (from >= keys) continue;  // nobody looks at their scores
        __m512i rows[kParts<T>][16];
        for (int64_t i = 0; i < 16; ++i) {
          __m512i part[kParts<T>] = {};
          if (from + i < keys)
            read(k + (from + i) * stride + step * kStep, width - step * kStep, part);
          for (int j = 0; j < kParts<T>; ++j) rows[j][i] = part[j];
        }
        for (int j = 0; j < kParts<T>; ++j) transpose(rows[j], tiles + (2 * j + half) * kTile);
      }
    }
  }
}

// Values as right tiles of p v: [panels][keys / 32][parts][2] tiles.
template <class T>
void pack_values(const T* v, int64_t stride, int64_t keys, int64_t width, const Sizes& sizes,
                 bf16* tiles) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                       39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  for (int64_t p = 0; p < sizes.panels; ++p) {
    for (int64_t b = 0; b < sizes.blocks; ++b, tiles += kPair<T>) {
      for (int64_t i = 0; i < 16; ++i) {
        const int64_t key = b * 32 + 2 * i;
        const T* row = v + key * stride + p * 32;
        __m512i even[kParts<T>] = {}, odd[kParts<T>] = {};
        if (key < keys) read(row, width - p * 32, even);
        if (key + 1 < keys) read(row + stride, width - p * 32, odd);
        for (int j = 0; j < kParts<T>; ++j) {
          bf16* tile = tiles + 2 * j * kTile + i * 32;
          _mm512_storeu_si512(tile, _mm512_permutex2var_epi16(even[j], low, odd[j]));
          _mm512_storeu_si512(tile + kTile, _mm512_permutex2var_epi16(even[j], high, odd[j]));
        }
      }
    }
  }
}

constexpr int kAbreast = 4;  // rows at a time: one alone would wait for its own sums

// Scores of a few rows become weights in tiles. `most` holds the largest scores so far, `total` the
// sums of weights, `fade` what earlier weights must be multiplied by. Where a bound of the scores is
// known, it stands for the largest.
template <class T, bool biased, bool bounded>
inline void weigh(const float* scores, int64_t keys, int64_t padded, float scale, float* most,
                  float* total, float* fade, bf16* tiles) {
  __m512 top[kAbreast], sum[kAbreast];
  for (int r = 0; r < kAbreast; ++r) top[r] = _mm512_set1_ps(most[r]);
  for (int64_t j = 0; j < keys && !bounded; j += 16) {
    const __mmask16 mask = first(keys - j);
    for (int r = 0; r < kAbreast; ++r)
      top[r] = _mm512_mask_max_ps(top[r], mask, top[r], _mm512_loadu_ps(scores + r * padded + j));
  }
  const __m512 factor = _mm512_set1_ps(scale * kLog2e);
  for (int r = 0; r < kAbreast; ++r) {
    const float now = bounded ? most[r] : _mm512_reduce_max_ps(top[r]);
    fade[r] = bounded ? 1.0f : __builtin_exp2f((most[r] - now) * scale * kLog2e);
    most[r] = now;
    top[r] = _mm512_set1_ps(now);
    sum[r] = _mm512_setzero_ps();
  }
  for (int64_t j = 0; j < padded; j += 32, tiles += kPair<T>) {
    const __mmask16 m0 = first(keys - j), m1 = first(keys - j - 16);
    for (int r = 0; r < kAbreast; ++r) {
      const float* row = scores + r * padded + j;
      __m512 a = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(row), top[r]), factor);
      __m512 b = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(row + 16), top[r]), factor);
      if (biased) {  // -inf may be among them
        a = _mm512_max_ps(a, _mm512_set1_ps(-1e4f));
        b = _mm512_max_ps(b, _mm512_set1_ps(-1e4f));
      }
      a = _mm512_maskz_mov_ps(m0, exp2<sizeof(T) == 4>(a));
      b = _mm512_maskz_mov_ps(m1, exp2<sizeof(T) == 4>(b));
      sum[r] = _mm512_add_ps(sum[r], _mm512_add_ps(a, b));
      __m512i part[kParts<T>];
      split<kParts<T>>(a, b, part);
      for (int i = 0; i < kParts<T>; ++i)
        _mm512_storeu_si512(tiles + 2 * i * kTile + r * kStep, part[i]);
    }
  }
  for (int r = 0; r < kAbreast; ++r) total[r] = total[r] * fade[r] + _mm512_reduce_add_ps(sum[r]);
}

struct Buffers {
  bf16 *keys, *values, *queries, *weights;
  float *scores, *sums;
};

template <class T>
Buffers allot(Room& room, const Sizes& sizes, int64_t block) {
  const int64_t keys = sizes.blocks * sizes.steps * kPair<T>;
  const int64_t values = sizes.blocks * sizes.panels * kPair<T>;
  const int64_t queries = sizes.steps * kPair<T>, weights = block / 32 * kPair<T>;
  const int64_t scores = 32 * block, sums = sizes.panels * 32 * 32;
  bf16* all = room.of<bf16>(keys + values + queries + weights + 2 * (scores + 2 * sums));
  if (!all) return {};
  float* rest = (float*)(all + keys + values + queries + weights);
  return {all, all + keys, all + keys + values, all + keys + values + queries, rest, rest + scores};
}

// Scaled scores of the rows that there are, and the bias.
template <class T>
void add_bias(const AttentionCall<T>& call, float* scores, int64_t padded, int64_t head,
              int64_t start, int64_t rows, int64_t from, int64_t keys) {
  const __m512 scale = _mm512_set1_ps(call.scale);
  for (int64_t r = 0; r < rows; ++r) {
    const float* bias = call.bias + (head * call.queries + start + r) * call.keys + from;
    float* row = scores + r * padded;
    for (int64_t j = 0; j < keys; j += 16)
      _mm512_storeu_ps(row + j, _mm512_fmadd_ps(_mm512_loadu_ps(row + j), scale,
                                                _mm512_maskz_loadu_ps(first(keys - j), bias + j)));
  }
}

// 32 queries of one head.
template <class T>
void strip(const AttentionCall<T>& call, const Sizes& sizes, const Buffers& at, int64_t item,
           int64_t head, int64_t start) {
  const int64_t rows = std::min<int64_t>(kRows, call.queries - start);
  const T* q = call.q + item * call.q_strides[0] + head * call.q_strides[1];
  for (int64_t r = 0; r < rows; ++r) {  // what other rows hold stays in them
    for (int64_t s = 0; s < sizes.steps; ++s) {
      __m512i part[kParts<T>];
      read(q + (start + r) * call.q_strides[2] + s * kStep, call.width - s * kStep, part);
      for (int j = 0; j < kParts<T>; ++j)
        _mm512_storeu_si512(at.queries + s * kPair<T> + (2 * j + r / 16) * kTile + r % 16 * kStep,
                            part[j]);
    }
  }
  alignas(64) float most[kRows], total[kRows], fades[kRows];
  std::fill_n(most, kRows, call.bound > 0 ? call.bound / call.scale : -3.0e38f);
  std::fill_n(total, kRows, 0.0f);
  alignas(64) float part[32 * 32];
  for (int64_t from = 0; from < call.keys; from += kBlock) {
    const int64_t keys = std::min(kBlock, call.keys - from), blocks = up(keys, 32);
    const int64_t padded = blocks * 32;
    for (int64_t b = 0; b < blocks; ++b)
      multiply<kParts<T>>(at.queries, at.keys + (from / 32 + b) * sizes.steps * kPair<T>,
                          sizes.steps, at.scores + b * 32, padded);
    if (call.bias) add_bias(call, at.scores, padded, head, start, rows, from, keys);
    for (int64_t r = 0; r < rows; r += kAbreast) {
      const float* scores = at.scores + r * padded;
      bf16* tiles = at.weights + r / 16 * kTile + r % 16 * kStep;
      if (call.bias)
        weigh<T, true, false>(scores, keys, padded, 1.0f, most + r, total + r, fades + r, tiles);
      else if (call.bound > 0)
        weigh<T, false, true>(scores, keys, padded, call.scale, most + r, total + r, fades + r,
                              tiles);
      else
        weigh<T, false, false>(scores, keys, padded, call.scale, most + r, total + r, fades + r,
                               tiles);
    }
    for (int64_t p = 0; p < sizes.panels; ++p) {
      float* sums = at.sums + p * 32 * 32;
      multiply<kParts<T>>(at.weights, at.values + (p * sizes.blocks + from / 32) * kPair<T>, blocks,
                          from ? part : sums, 32);
      if (!from) continue;
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = 0; j < 32; j += 16) {
          const __m512 old = _mm512_loadu_ps(sums + r * 32 + j);
          _mm512_storeu_ps(sums + r * 32 + j, _mm512_fmadd_ps(old, _mm512_set1_ps(fades[r]),
                                                              _mm512_loadu_ps(part + r * 32 + j)));
        }
    }
  }
  T* out = call.out + item * call.out_strides[0] + head * call.out_strides[1];
  for (int64_t r = 0; r < rows; ++r) {
    const __m512 factor = _mm512_set1_ps(1.0f / total[r]);
    for (int64_t j = 0; j < call.width; j += 16) {
      const float* sums = at.sums + (j / 32 * 32 + r) * 32 + j % 32;
      store(out + (start + r) * call.out_strides[2] + j, _mm512_mul_ps(_mm512_loadu_ps(sums), factor),
            first(call.width - j));
    }
  }
}

template <class T>
int run_all(const AttentionCall<T>& call) {
  const Sizes sizes = {up(call.width, kStep), up(call.width, 32), up(call.keys, 32)};
  const int64_t block = std::min(kBlock, sizes.blocks * 32);
  const int64_t pairs = call.items * call.heads, strips = up(call.queries, kRows);
  int failed = 0;
#pragma omp parallel num_threads(call.threads) reduction(| : failed)
  {
    const int64_t threads = omp_get_num_threads(), mine = omp_get_thread_num();
    // by strips, so that few heads keep many threads busy
    const int64_t from = pairs * strips * mine / threads;
    const int64_t to = pairs * strips * (mine + 1) / threads;
    static thread_local Room room;
    const Buffers at = allot<T>(room, sizes, block);
    failed = at.keys == nullptr;
    if (!failed && from < to) {
      Tiles configured;
      int64_t packed = -1;
      for (int64_t i = from; i < to; ++i) {
        const int64_t pair = i / strips, item = pair / call.heads, head = pair % call.heads;
        if (pair != packed) {
          packed = pair;
          pack_keys(call.k + item * call.k_strides[0] + head * call.k_strides[1],
                    call.k_strides[2], call.keys, call.width, sizes, at.keys);
          pack_values(call.v + item * call.v_strides[0] + head * call.v_strides[1],
                      call.v_strides[2], call.keys, call.width, sizes, at.values);
        }
        strip(call, sizes, at, item, head, i % strips * kRows);
      }
    }
  }
  return failed;
}

}  // namespace

// Each returns 0, or 1 where there is no memory.
extern "C" int omnitok_attention(const AttentionCall<bf16>* call) { return run_all(*call); }

extern "C" int omnitok_attention_float32(const AttentionCall<float>* call) {
  return run_all(*call);
}
