// The vocabulary for AVX2 + FMA + F16C: 8 lanes.
#pragma once

#include <immintrin.h>

#include "simd_common.h"

namespace flashint8::cpu {
namespace {

using Vec = __m256;
constexpr int kLanes = 8;
// Accumulators of the tile product: kTileVectors x kTileRows registers of the 16.
constexpr int kTileVectors = 3;
constexpr int kTileRows = 4;

FLASHINT8_INLINE __m256i first_lanes(int64_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
}

FLASHINT8_INLINE Vec zero() { return _mm256_setzero_ps(); }
FLASHINT8_INLINE Vec set1(float x) { return _mm256_set1_ps(x); }
FLASHINT8_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
FLASHINT8_INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
FLASHINT8_INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
FLASHINT8_INLINE Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
FLASHINT8_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
// b where either is NaN.
FLASHINT8_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
FLASHINT8_INLINE Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
FLASHINT8_INLINE Vec abs(Vec a) { return _mm256_andnot_ps(set1(-0.0f), a); }
// a < b ? x : y
FLASHINT8_INLINE Vec select_less(Vec a, Vec b, Vec x, Vec y) {
  return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
FLASHINT8_INLINE Vec round_even(Vec a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// p * 2^n for integral n in [kLowestPower, 127]; 0 at kLowestPower.
constexpr float kLowestPower = -127.0f;
FLASHINT8_INLINE Vec scale_by_power(Vec p, Vec n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return mul(p, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

FLASHINT8_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
FLASHINT8_INLINE void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
FLASHINT8_INLINE Vec load_partial(const float* p, int64_t n) {
  return _mm256_maskload_ps(p, first_lanes(n));
}
FLASHINT8_INLINE void store_partial(float* p, Vec v, int64_t n) {
  _mm256_maskstore_ps(p, first_lanes(n), v);
}

// n 16-bit elements and zeros behind them.
FLASHINT8_INLINE __m128i load_partial_16bit(const void* p, int64_t n) {
  alignas(16) uint16_t buffer[8] = {};
  memcpy(buffer, p, static_cast<size_t>(n) * 2);
  return _mm_load_si128(reinterpret_cast<const __m128i*>(buffer));
}
FLASHINT8_INLINE void store_partial_16bit(void* p, __m128i v, int64_t n) {
  alignas(16) uint16_t buffer[8];
  _mm_store_si128(reinterpret_cast<__m128i*>(buffer), v);
  memcpy(p, buffer, static_cast<size_t>(n) * 2);
}

FLASHINT8_INLINE Vec load(const F16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
FLASHINT8_INLINE Vec load_partial(const F16* p, int64_t n) {
  return _mm256_cvtph_ps(load_partial_16bit(p, n));
}
FLASHINT8_INLINE __m128i to_f16(Vec v) {
  return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
FLASHINT8_INLINE void store(F16* p, Vec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_f16(v));
}
FLASHINT8_INLINE void store_partial(F16* p, Vec v, int64_t n) {
  store_partial_16bit(p, to_f16(v), n);
}

FLASHINT8_INLINE Vec from_bf16(__m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
FLASHINT8_INLINE Vec load(const BF16* p) {
  return from_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
FLASHINT8_INLINE Vec load_partial(const BF16* p, int64_t n) {
  return from_bf16(load_partial_16bit(p, n));
}
// 2 * kLanes bf16: those at even places, and the others.
FLASHINT8_INLINE void load_even_odd(const BF16* p, Vec* even, Vec* odd) {
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  *even = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
  *odd = _mm256_castsi256_ps(
      _mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}
// even[0], odd[0], even[1], ...
FLASHINT8_INLINE void interleave(Vec even, Vec odd, Vec* low, Vec* high) {
  const Vec a = _mm256_unpacklo_ps(even, odd);
  const Vec b = _mm256_unpackhi_ps(even, odd);
  *low = _mm256_permute2f128_ps(a, b, 0x20);
  *high = _mm256_permute2f128_ps(a, b, 0x31);
}
// Round half even; a NaN becomes the quiet NaN.
FLASHINT8_INLINE __m128i to_bf16(Vec v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000),
                               _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
  rounded = _mm256_srli_epi32(rounded, 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
}
FLASHINT8_INLINE void store(BF16* p, Vec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_bf16(v));
}
FLASHINT8_INLINE void store_partial(BF16* p, Vec v, int64_t n) {
  store_partial_16bit(p, to_bf16(v), n);
}

FLASHINT8_INLINE Vec load(const int8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}
FLASHINT8_INLINE Vec load_partial(const int8_t* p, int64_t n) {
  alignas(8) int8_t buffer[8] = {};
  memcpy(buffer, p, static_cast<size_t>(n));
  return load(buffer);
}
// v holds integers in [-127, 127].
FLASHINT8_INLINE void store_partial(int8_t* p, Vec v, int64_t n) {
  const __m256i wide = _mm256_cvtps_epi32(v);
  const __m128i words =
      _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  alignas(16) int8_t buffer[16];
  _mm_store_si128(reinterpret_cast<__m128i*>(buffer), _mm_packs_epi16(words, words));
  memcpy(p, buffer, static_cast<size_t>(n));
}

// s where low <= n < high, else -infinity.
FLASHINT8_INLINE Vec keep_between(Vec s, Vec n, Vec low, Vec high) {
  const Vec inside =
      _mm256_and_ps(_mm256_cmp_ps(low, n, _CMP_LE_OQ), _mm256_cmp_ps(n, high, _CMP_LT_OQ));
  return _mm256_blendv_ps(set1(-__builtin_inff()), s, inside);
}

FLASHINT8_INLINE float sum_lanes(Vec v) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
FLASHINT8_INLINE float max_lanes(Vec v) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

// Lane i of the result is the sum of the lanes of rows[i].
FLASHINT8_INLINE Vec sum_rows(const Vec* rows) {
  const Vec low =
      _mm256_hadd_ps(_mm256_hadd_ps(rows[0], rows[1]), _mm256_hadd_ps(rows[2], rows[3]));
  const Vec high =
      _mm256_hadd_ps(_mm256_hadd_ps(rows[4], rows[5]), _mm256_hadd_ps(rows[6], rows[7]));
  return add(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

// rows[i] lane j <-> rows[j] lane i.
FLASHINT8_INLINE void transpose(Vec* rows) {
  Vec t[8];
  FLASHINT8_UNROLL
  for (int i = 0; i < 8; i += 4) {  // 4x4 blocks inside each 128-bit half
    const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(rows[i], rows[i + 1]));
    const __m256d b = _mm256_castps_pd(_mm256_unpackhi_ps(rows[i], rows[i + 1]));
    const __m256d c = _mm256_castps_pd(_mm256_unpacklo_ps(rows[i + 2], rows[i + 3]));
    const __m256d d = _mm256_castps_pd(_mm256_unpackhi_ps(rows[i + 2], rows[i + 3]));
    t[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
    t[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
    t[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
    t[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
  }
  FLASHINT8_UNROLL
  for (int j = 0; j < 4; ++j) {  // then the halves themselves
    rows[j] = _mm256_permute2f128_ps(t[j], t[4 + j], 0x20);
    rows[4 + j] = _mm256_permute2f128_ps(t[j], t[4 + j], 0x31);
  }
}

}  // namespace
}  // namespace flashint8::cpu
