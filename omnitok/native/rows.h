// What a linear layer is asked for, and how its rows and weights become tiles.

#pragma once

#include <algorithm>

#include "pixels.h"
#include "tiles.h"

namespace {

enum Norm { kNone = 0, kRms = 1, kLayer = 2 };
enum Act { kLinear = 0, kGeluTanh = 1, kSwiglu = 2, kGeglu = 3 };

}  // namespace

// Where the keys and values of a run of windows go: `size` tokens, then the next window.
struct Ring {
  bf16* k;
  bf16* v;
  int64_t start, size, stride;
};

// One call; the same in omnitok/native/calls.py. Pointers that may be null say so. For float32
// there is no second layer, and there are neither rings nor pixels.
template <class T>
struct LinearCall {
  const T* x;               // [rows, width], rows `x_stride` apart
  const float* norm_weight; // [width] or null
  const float* norm_bias;   // [width] or null
  const T* weight;          // bfloat16: panels of 32 columns, [N / 32][width / 32][2] tiles;
                            // float32: [N, width], rows `weight_stride` apart
  const float* bias;        // [N] in the order of the panels, or null
  const T* weight2;         // of a second layer, which takes what the first gives, or null
  const float* bias2;       // or null
  const T* residual;        // added to the result, laid out like it, or null
  T* out;                   // [rows, columns], rows `out_stride` apart
  const float* phasors;     // [period, head_width / 2] of (cosine, sine), or null
  const float* gains;       // [heads, head_width] or null
  const int64_t* order;     // [rows] which row of `x` a row of `out` is of, or null
  const int64_t* onto_order; // the same for `residual`
  const Pixels* x_pixels;   // instead of `x`: patches of it are the rows; or null
  const Pixels* out_pixels; // instead of `out`: patches of it are the rows; or null
  const Ring* rings;        // what comes after the queries goes there and not to `out`, or null
  int64_t rows, width, x_stride, weight_stride, columns, out_stride, hidden;
  int64_t norm, act;
  int64_t heads, head_width, period;  // of the leading columns that are normalised and rotated
  int64_t unit;             // whether they are normalised
  int64_t gains_last;       // whether gains come after the rotation
  int64_t runs;             // how many rings
  int64_t threads;
  float norm_eps, unit_eps;
};

namespace {

// 32 neighbours to their places in the tiles of all parts.
template <class T>
inline void put(bf16* place, __m512 a, __m512 b) {
  __m512i part[kParts<T>];
  split<kParts<T>>(a, b, part);
  for (int i = 0; i < kParts<T>; ++i) _mm512_storeu_si512(place + i * 2 * kTile, part[i]);
}

// The mean that a norm takes off a row, and what it multiplies by.
template <class T>
inline void measure(const LinearCall<T>& call, const T* x, __m512& mean, __m512& scale) {
  const int64_t width = call.width;
  if (call.norm == kLayer) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t k = 0; k < width; k += 16) sum = _mm512_add_ps(sum, load(x + k, first(width - k)));
    mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / width);
  }
  __m512 sum0 = _mm512_setzero_ps(), sum1 = _mm512_setzero_ps();
  for (int64_t k = 0; k < width; k += 32) {
    const __mmask16 m0 = first(width - k), m1 = first(width - k - 16);
    const __m512 a = _mm512_maskz_sub_ps(m0, load(x + k, m0), mean);
    const __m512 b = _mm512_maskz_sub_ps(m1, load(x + k + 16, m1), mean);
    sum0 = _mm512_fmadd_ps(a, a, sum0);
    sum1 = _mm512_fmadd_ps(b, b, sum1);
  }
  const float square = _mm512_reduce_add_ps(_mm512_add_ps(sum0, sum1)) / width;
  scale = _mm512_set1_ps(1.0f / __builtin_sqrtf(square + call.norm_eps));
}

// Rows to tiles, normalised; what lies beyond the last row or column is 0. `patch` has room for one.
template <class T>
void pack(const LinearCall<T>& call, int64_t start, int64_t strips, bf16* tiles, T* patch) {
  const int64_t width = call.width, steps = up(width, kStep);
  constexpr int64_t step = kParts<T> * 2 * kTile;
  for (int64_t i = 0; i < strips * kRows; ++i) {
    bf16* place = tiles + i / kRows * steps * step + i % kRows / 16 * kTile + i % 16 * kStep;
    const int64_t row = start * kRows + i;
    const T* x = patch;
    if (row >= call.rows)
      std::fill_n(patch, width, T(0));
    else if (call.x_pixels)
      copy_patch<false>(*call.x_pixels, row, (bf16*)patch);
    else
      x = call.x + (call.order ? call.order[row] : row) * call.x_stride;
    const bool normed = call.norm != kNone && row < call.rows;
    __m512 mean = _mm512_setzero_ps(), scale = _mm512_set1_ps(1.0f);
    if (normed) measure(call, x, mean, scale);
    for (int64_t k = 0; k < steps; ++k) {
      __m512 part[2];
      for (int j = 0; j < 2; ++j) {
        const int64_t at = k * kStep + 16 * j;
        const __mmask16 mask = first(width - at);
        part[j] = load(x + at, mask);
        if (!normed) continue;
        part[j] = _mm512_maskz_mul_ps(mask, _mm512_sub_ps(part[j], mean), scale);
        if (call.norm_weight)
          part[j] = _mm512_mul_ps(part[j], _mm512_maskz_loadu_ps(mask, call.norm_weight + at));
        if (call.norm_bias)
          part[j] = _mm512_add_ps(part[j], _mm512_maskz_loadu_ps(mask, call.norm_bias + at));
      }
      put<T>(place + k * step, part[0], part[1]);
    }
  }
}

// A panel of float32 weights, columns `from` to `to`, to tiles: [width / 32][3][2].
void pack_panel(const float* weight, int64_t width, int64_t stride, int64_t from, int64_t to,
                bf16* tiles) {
  for (int64_t k = 0; k < width; k += kStep, tiles += 3 * 2 * kTile) {
    const __mmask16 m0 = first(width - k), m1 = first(width - k - 16);
    for (int half = 0; half < 2; ++half) {
      __m512i rows[3][16];
      for (int i = 0; i < 16; ++i) {
        const int64_t column = from + 16 * half + i;
        const float* x = weight + column * stride + k;
        const bool is = column < to;
        __m512i part[3];
        split<3>(is ? load(x, m0) : _mm512_setzero_ps(),
                 is ? load(x + 16, m1) : _mm512_setzero_ps(), part);
        for (int j = 0; j < 3; ++j) rows[j][i] = part[j];
      }
      for (int j = 0; j < 3; ++j) transpose(rows[j], tiles + (2 * j + half) * kTile);
    }
  }
}

}  // namespace
