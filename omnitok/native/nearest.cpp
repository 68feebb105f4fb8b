// The row of a codebook with the best score, and by how much it beats the next.

#include <omp.h>

#include <algorithm>
#include <cmath>

#include "tiles.h"

// One call; the same in omnitok/native/calls.py. `rows` is a multiple of 16; rows that only fill
// up have a penalty of infinity.
struct NearestCall {
  const float* x;        // [inputs, width]
  const float* book;     // [width, rows]
  const float* penalty;  // [rows] taken off the products
  int64_t* codes;        // [inputs]
  float* leads;          // [inputs]
  int64_t inputs, width, rows, threads;
};

namespace {

constexpr int kAbreast = 4;  // inputs at a time, for which rows are read once

void search(const NearestCall& call, int64_t start) {
  const int64_t many = std::min<int64_t>(kAbreast, call.inputs - start);
  const float* x[kAbreast];
  __m512 best[kAbreast], second[kAbreast];
  __m512i where[kAbreast];
  for (int i = 0; i < kAbreast; ++i) {
    x[i] = call.x + (start + std::min<int64_t>(i, many - 1)) * call.width;
    best[i] = second[i] = _mm512_set1_ps(-INFINITY);
    where[i] = _mm512_setzero_si512();
  }
  __m512i row = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int64_t v = 0; v < call.rows; v += 16, row = _mm512_add_epi32(row, _mm512_set1_epi32(16))) {
    __m512 score[kAbreast] = {};
    for (int64_t c = 0; c < call.width; ++c) {
      const __m512 values = _mm512_loadu_ps(call.book + c * call.rows + v);
      for (int i = 0; i < kAbreast; ++i)
        score[i] = _mm512_fmadd_ps(_mm512_set1_ps(x[i][c]), values, score[i]);
    }
    const __m512 penalty = _mm512_loadu_ps(call.penalty + v);
    for (int i = 0; i < kAbreast; ++i) {
      score[i] = _mm512_sub_ps(score[i], penalty);
      const __mmask16 better = _mm512_cmp_ps_mask(score[i], best[i], _CMP_GT_OQ);
      second[i] = _mm512_max_ps(second[i], _mm512_min_ps(best[i], score[i]));
      where[i] = _mm512_mask_mov_epi32(where[i], better, row);
      best[i] = _mm512_mask_mov_ps(best[i], better, score[i]);
    }
  }
  for (int i = 0; i < many; ++i) {
    alignas(64) float first[16], next[16];
    alignas(64) int32_t at[16];
    _mm512_store_ps(first, best[i]);
    _mm512_store_ps(next, second[i]);
    _mm512_store_si512(at, where[i]);
    int lane = 0;
    for (int j = 1; j < 16; ++j)
      if (first[j] > first[lane] || (first[j] == first[lane] && at[j] < at[lane])) lane = j;
    float other = next[lane];
    for (int j = 0; j < 16; ++j)
      if (j != lane) other = std::max(other, first[j]);
    call.codes[start + i] = at[lane];
    call.leads[start + i] = first[lane] - other;
  }
}

}  // namespace

extern "C" int omnitok_nearest(const NearestCall* given) {
  const NearestCall call = *given;
#pragma omp parallel for num_threads(call.threads)
  for (int64_t start = 0; start < call.inputs; start += kAbreast) search(call, start);
  return 0;
}
