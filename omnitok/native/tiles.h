// Numbers of bfloat16, vectors of float32 and matrix tiles (Intel AMX).
//
// float32 is the sum of three numbers of bfloat16, and six of the nine products of such parts give
// what a product in float32 gives: the others are below its rounding (Henry et al. 2019,
// arXiv:1904.06376).
//
// A tile holds 16 rows of 64 bytes. A product takes a left tile of 16 rows and 32 numbers of
// bfloat16, and a right tile whose row r holds the numbers 2 r and 2 r + 1 of each of 16 columns.

#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>

using bf16 = uint16_t;

constexpr int kTile = 512;  // numbers of bfloat16 in a tile
constexpr int kRows = 32;   // rows of a strip: two tiles
constexpr int kStep = 32;   // numbers that one product of tiles sums over

inline int64_t up(int64_t size, int64_t part) { return (size + part - 1) / part; }

inline __mmask16 first(int64_t count) {
  return count >= 16 ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
}

inline __m512 wide(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

inline __m512 load(const bf16* x, __mmask16 mask = 0xffff) {
  return wide(_mm256_maskz_loadu_epi16(mask, x));
}

inline void store(bf16* x, __m512 y, __mmask16 mask = 0xffff) {
  _mm256_mask_storeu_epi16(x, mask, (__m256i)_mm512_cvtneps_pbh(y));
}

inline __m512 load(const float* x, __mmask16 mask = 0xffff) { return _mm512_maskz_loadu_ps(mask, x); }

inline void store(float* x, __m512 y, __mmask16 mask = 0xffff) { _mm512_mask_storeu_ps(x, mask, y); }

// 32 neighbours, the first 16 from `a`.
inline __m512i narrow(__m512 a, __m512 b) { return (__m512i)_mm512_cvtne2ps_pbh(b, a); }

inline void store(bf16* x, __m512 a, __m512 b) { _mm512_storeu_si512(x, narrow(a, b)); }

inline void store(float* x, __m512 a, __m512 b) {
  store(x, a);
  store(x + 16, b);
}

// How many numbers of bfloat16 add up to one of type T.
template <class T>
constexpr int kParts = sizeof(T) == 4 ? 3 : 1;

// The parts of 32 neighbours, the largest first.
template <int parts>
inline void split(__m512 a, __m512 b, __m512i y[parts]) {
  for (int i = 0; i < parts; ++i) {
    y[i] = narrow(a, b);
    a = _mm512_sub_ps(a, wide(_mm512_castsi512_si256(y[i])));
    b = _mm512_sub_ps(b, wide(_mm512_extracti64x4_epi64(y[i], 1)));
  }
}

// 2^x: its whole part goes into the exponent, the rest through a polynomial (relative error 3e-6,
// a thousandth of what bfloat16 rounds off; 1e-7 if `exact`).
template <bool exact = false>
inline __m512 exp2(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, 0x08);
  const __m512 f = _mm512_sub_ps(x, whole);
  __m512 y = _mm512_set1_ps(9.562107e-3f);
  if (exact) {
    y = _mm512_fmadd_ps(_mm512_set1_ps(1.5403530e-4f), f, _mm512_set1_ps(1.3333558e-3f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.6181291e-3f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.5504109e-2f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.4022651e-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.9314718e-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, whole);
  }
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.5917181e-2f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.4024942e-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.9312194e-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.9999920e-1f));
  return _mm512_scalef_ps(y, whole);
}

// 1 / x: an approximation, made exact to a few units in the last place by one Newton step.
inline __m512 inverse(__m512 x) {
  const __m512 y = _mm512_rcp14_ps(x);
  return _mm512_mul_ps(y, _mm512_fnmadd_ps(x, y, _mm512_set1_ps(2.0f)));
}

constexpr float kLog2e = 1.44269504f;

// x / (1 + e^-x)
template <bool exact>
inline __m512 silu(__m512 x) {
  const __m512 e = exp2<exact>(_mm512_min_ps(_mm512_mul_ps(x, _mm512_set1_ps(-kLog2e)),
                                      _mm512_set1_ps(126.0f)));
  return _mm512_mul_ps(x, inverse(_mm512_add_ps(_mm512_set1_ps(1.0f), e)));
}

// x (1 + tanh(u)) / 2 = x / (1 + e^-2u) with u = sqrt(2 / pi) (x + 0.044715 x^3)
template <bool exact>
inline __m512 gelu_tanh(__m512 x) {
  const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
  const __m512 u = _mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x);
  const __m512 e = exp2<exact>(_mm512_min_ps(
      _mm512_mul_ps(u, _mm512_set1_ps(-2.0f * 0.7978845608f * kLog2e)), _mm512_set1_ps(126.0f)));
  return _mm512_mul_ps(x, inverse(_mm512_add_ps(_mm512_set1_ps(1.0f), e)));
}

// x (1 + erf(x / sqrt(2))) / 2, erf by Abramowitz and Stegun 1964, 7.1.26 (error 1.5e-7)
template <bool exact>
inline __m512 gelu_erf(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
  const __m512 t = inverse(_mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
  __m512 y = _mm512_set1_ps(1.061405429f);
  y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(-1.453152027f));
  y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(1.421413741f));
  y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(-0.284496736f));
  y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(0.254829592f));
  y = _mm512_mul_ps(_mm512_mul_ps(y, t),
                    exp2<exact>(_mm512_mul_ps(_mm512_mul_ps(z, z), _mm512_set1_ps(-kLog2e))));
  // y is now 1 - erf(z)
  const __m512 half = _mm512_mul_ps(x, _mm512_set1_ps(0.5f));
  const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
  return _mm512_mask_mul_ps(_mm512_mul_ps(half, _mm512_sub_ps(_mm512_set1_ps(2.0f), y)), negative,
                            half, y);
}

// GCC's tile loads do not tell it what they read: what was written before must be in memory.
inline void settle() { asm volatile("" ::: "memory"); }

// All eight tiles of a thread at full size for as long as it lives; then as they were before.
class Tiles {
 public:
  Tiles() {
    _tile_storeconfig(before_);
    settle();
    alignas(64) uint8_t config[64] = {1};
    for (int i = 0; i < 8; ++i) {
      config[16 + 2 * i] = 64;  // bytes of a row
      config[48 + i] = 16;      // rows
    }
    settle();
    _tile_loadconfig(config);
  }
  ~Tiles() {
    settle();
    if (before_[0])
      _tile_loadconfig(before_);
    else
      _tile_release();
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

 private:
  alignas(64) uint8_t before_[64];
};

// Memory of a thread that grows as needed and is kept for the next call.
class Room {
 public:
  ~Room() { std::free(data_); }
  template <class T>
  T* of(int64_t count) {
    const int64_t bytes = up(count * (int64_t)sizeof(T), 64) * 64;
    if (bytes > bytes_) {
      std::free(data_);
      data_ = std::aligned_alloc(64, bytes);
      bytes_ = data_ ? bytes : 0;
    }
    return (T*)data_;
  }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// 16 rows of 32 numbers become a right tile, whose columns they are.
inline void transpose(__m512i rows[16], bf16* tile) {
  __m512i t[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    rows[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    rows[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    rows[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    rows[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    _mm512_storeu_si512(tile + i * 32, _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
    _mm512_storeu_si512(tile + (i + 8) * 32, _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
  }
}

// Two left tiles (4 and 5) times two right ones (6 and 7) are added to tiles 0 to 3.
inline void left(const bf16* a) {
  _tile_loadd(4, a, 64);
  _tile_loadd(5, a + kTile, 64);
}

inline void right(const bf16* b) {
  _tile_loadd(6, b, 64);
  _tile_loadd(7, b + kTile, 64);
}

inline void products() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// c[32][32], whose rows are `ldc` apart, becomes (or gains) a strip times a panel over `steps`. What
// `between` does after each step runs while the tiles are multiplied.
template <int parts, class Between>
inline void multiply(const bf16* a, const bf16* b, int64_t steps, float* c, int64_t ldc, bool more,
                     Between between) {
  constexpr int64_t pair = 2 * kTile;
  settle();
  if (more) {
    _tile_loadd(0, c, ldc * 4);
    _tile_loadd(1, c + 16, ldc * 4);
    _tile_loadd(2, c + 16 * ldc, ldc * 4);
    _tile_loadd(3, c + 16 * ldc + 16, ldc * 4);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < steps; ++k, a += parts * pair, b += parts * pair) {
    left(a);
    if (parts == 3) {
      right(b + 2 * pair);
      products();
      right(b + pair);
      products();
      left(a + pair);
      products();
      right(b);
      products();
      left(a + 2 * pair);
      products();
      left(a);
    } else {
      right(b);
    }
    products();
    between();
  }
  _tile_stored(0, c, ldc * 4);
  _tile_stored(1, c + 16, ldc * 4);
  _tile_stored(2, c + 16 * ldc, ldc * 4);
  _tile_stored(3, c + 16 * ldc + 16, ldc * 4);
}

template <int parts>
inline void multiply(const bf16* a, const bf16* b, int64_t steps, float* c, int64_t ldc) {
  multiply<parts>(a, b, steps, c, ldc, false, [] {});
}
