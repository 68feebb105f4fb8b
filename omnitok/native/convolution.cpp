// A depth-wise 3x3x3 convolution over (time, row, column), added to what it is of.

#include <omp.h>

#include "tiles.h"

// One call; the same in omnitok/native/calls.py.
template <class T>
struct ConvolutionCall {
  const T* x;           // [batch, t, y, x, width], contiguous, and so is the result
  T* out;
  const float* weight;  // [3, 3, 3, width]
  const float* bias;    // [width]
  int64_t batch, times, rows, columns, width;
  int64_t before;       // taps that lie before in time: 1, or 2 of a causal one
  int64_t threads;
};

namespace {

// 16 channels of a row of places. An input is read once for the three places that it reaches.
template <class T>
void row(const ConvolutionCall<T>& call, int64_t line, int64_t channel) {
  const int64_t y = line % call.rows, t = line / call.rows % call.times;
  const int64_t clip = line / call.rows / call.times;
  const __mmask16 mask = first(call.width - channel);
  const T* inputs[9];
  const float* weights[9];
  int64_t many = 0;
  for (int64_t dt = 0; dt < 3; ++dt) {
    for (int64_t dy = 0; dy < 3; ++dy) {
      const int64_t from = t + dt - call.before, at = y + dy - 1;
      if (from < 0 || from >= call.times || at < 0 || at >= call.rows) continue;
      const int64_t place = ((clip * call.times + from) * call.rows + at) * call.columns;
      inputs[many] = call.x + place * call.width + channel;
      weights[many++] = call.weight + (dt * 3 + dy) * 3 * call.width + channel;
    }
  }
  const __m512 bias = _mm512_maskz_loadu_ps(mask, call.bias + channel);
  const T* old = call.x + line * call.columns * call.width + channel;
  T* out = call.out + line * call.columns * call.width + channel;
  __m512 left = bias, here = bias, right = bias;  // sums of the places around the input
  for (int64_t x = 0; x < call.columns; ++x) {
    for (int64_t i = 0; i < many; ++i) {
      const __m512 input = load(inputs[i] + x * call.width, mask);
      const float* w = weights[i];
      left = _mm512_fmadd_ps(input, _mm512_maskz_loadu_ps(mask, w + 2 * call.width), left);
      here = _mm512_fmadd_ps(input, _mm512_maskz_loadu_ps(mask, w + call.width), here);
      right = _mm512_fmadd_ps(input, _mm512_maskz_loadu_ps(mask, w), right);
    }
    if (x > 0) {
      const int64_t at = (x - 1) * call.width;
      store(out + at, _mm512_add_ps(left, load(old + at, mask)), mask);
    }
    left = here, here = right, right = bias;
  }
  const int64_t at = (call.columns - 1) * call.width;
  store(out + at, _mm512_add_ps(left, load(old + at, mask)), mask);
}

template <class T>
int run_all(const ConvolutionCall<T>& call) {
#pragma omp parallel for num_threads(call.threads)
  for (int64_t line = 0; line < call.batch * call.times * call.rows; ++line)
    for (int64_t channel = 0; channel < call.width; channel += 16) row(call, line, channel);
  return 0;
}

}  // namespace

extern "C" int omnitok_convolution(const ConvolutionCall<bf16>* call) { return run_all(*call); }

extern "C" int omnitok_convolution_float32(const ConvolutionCall<float>* call) {
  return run_all(*call);
}
