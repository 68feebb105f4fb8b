// Patches of pixels: [3, T, H, W] of any strides to rows of t h w 3 numbers, and back.

#pragma once

#include "tiles.h"

// The same in omnitok/native/calls.py.
struct Pixels {
  bf16* data;
  int64_t rows, columns;  // of patches
  int64_t t, h, w;        // of a patch
  int64_t strides[4];     // of colours, frames, rows and columns of pixels
};

namespace {

template <int width, int colour, int column, bool back>
inline void copy_patch(const Pixels& pixels, int64_t row, bf16* patch) {
  const int64_t w = width ? width : pixels.w;
  const int64_t dc = colour ? colour : pixels.strides[0];
  const int64_t dx = column ? column : pixels.strides[3];
  const int64_t x = row % pixels.columns, y = row / pixels.columns % pixels.rows;
  const int64_t g = row / pixels.columns / pixels.rows;
  for (int64_t t = 0; t < pixels.t; ++t) {
    for (int64_t h = 0; h < pixels.h; ++h, patch += 3 * w) {
      bf16* pixel = pixels.data + (g * pixels.t + t) * pixels.strides[1] +
                    (y * pixels.h + h) * pixels.strides[2] + x * w * dx;
      if (!back) _mm_prefetch((const char*)(pixel + 4 * w * dx), _MM_HINT_T0);
      for (int64_t i = 0; i < w; ++i) {
        for (int64_t c = 0; c < 3; ++c) {
          if (back)
            pixel[i * dx + c * dc] = patch[3 * i + c];
          else
            patch[3 * i + c] = pixel[i * dx + c * dc];
        }
      }
    }
  }
}

// Patch `row` in raster order, the groups one after the other.
template <bool back>
inline void copy_patch(const Pixels& pixels, int64_t row, bf16* patch) {
  if (pixels.w == 8 && pixels.strides[0] == 1 && pixels.strides[3] == 3)
    copy_patch<8, 1, 3, back>(pixels, row, patch);
  else if (pixels.w == 8 && pixels.strides[3] == 1)
    copy_patch<8, 0, 1, back>(pixels, row, patch);
  else
    copy_patch<0, 0, 0, back>(pixels, row, patch);
}

}  // namespace
