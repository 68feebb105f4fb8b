// Queries and keys, normalised and rotated, and where they and the values go.

#pragma once

#include "rows.h"

namespace {

// One head from `x` to `y`, of `known` numbers if that is not 0.
template <int known, class T>
inline void place_head(const LinearCall<T>& call, const T* x, T* y, const float* gains,
                       const float* phasor) {
  const int64_t width = known ? known : call.head_width;
  const int64_t many = up(width, 16);
  __m512 scale = _mm512_set1_ps(1.0f);
  if (call.unit) {
    __m512 sum = _mm512_setzero_ps();
#pragma GCC unroll 8
    for (int64_t k = 0; k < many; ++k) {
      const __m512 part = load(x + 16 * k, first(width - 16 * k));
      sum = _mm512_fmadd_ps(part, part, sum);
    }
    const float square = _mm512_reduce_add_ps(sum) / width;
    scale = _mm512_set1_ps(1.0f / __builtin_sqrtf(square + call.unit_eps));
  }
#pragma GCC unroll 8
  for (int64_t k = 0; k < many; ++k) {
    const __mmask16 mask = first(width - 16 * k);
    __m512 part = _mm512_mul_ps(load(x + 16 * k, mask), scale);
    const __m512 gain =
        gains ? _mm512_maskz_loadu_ps(mask, gains + 16 * k) : _mm512_set1_ps(1.0f);
    if (!call.gains_last) part = _mm512_mul_ps(part, gain);
    if (phasor) {
      const __m512 turn = _mm512_maskz_loadu_ps(mask, phasor + 16 * k);
      const __m512 other = _mm512_permute_ps(part, 0xb1);
      part = _mm512_fmaddsub_ps(part, _mm512_moveldup_ps(turn),
                                _mm512_mul_ps(other, _mm512_movehdup_ps(turn)));
    }
    if (call.gains_last) part = _mm512_mul_ps(part, gain);
    store(y + 16 * k, part, mask);
  }
}

// Finished rows from `from` on, which may be where they belong: heads that stand first are
// normalised and rotated, and keys and values go into their rings.
template <class T>
void place(const LinearCall<T>& call, const T* from, int64_t row, int64_t rows) {
  const int64_t width = call.head_width, half = call.heads / 2 * width;
  const Ring* ring = call.rings;
  for (int64_t i = row; i < row + rows; ++i, from += call.columns) {
    const float* phasor = call.phasors ? call.phasors + i % call.period * width : nullptr;
    T *q = call.out + i * call.out_stride, *k = q + half;
    if (ring) {
      while (ring + 1 < call.rings + call.runs && ring[1].start <= i) ++ring;
      const int64_t at = i - ring->start;
      const int64_t place = at / ring->size * ring->stride + at % ring->size * half;
      k = (T*)ring->k + place;
      for (int64_t j = 0; j < half; j += 32) {
        const __mmask32 mask = half - j >= 32 ? 0xffffffffu : (1u << (half - j)) - 1;
        _mm512_mask_storeu_epi16(ring->v + place + j, mask,
                                 _mm512_maskz_loadu_epi16(mask, from + 2 * half + j));
      }
    }
    for (int64_t h = 0; h < call.heads; ++h) {
      const float* gains = call.gains ? call.gains + h * width : nullptr;
      T* to = h < call.heads / 2 ? q + h * width : k + h * width - half;
      if (width == 64)
        place_head<64>(call, from + h * width, to, gains, phasor);
      else if (width == 72)  // as AToken has
        place_head<72>(call, from + h * width, to, gains, phasor);
      else
        place_head<0>(call, from + h * width, to, gains, phasor);
    }
  }
}

}  // namespace
