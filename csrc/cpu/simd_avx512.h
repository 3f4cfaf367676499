// The vocabulary for AVX-512 (F, BW, DQ, VL): 16 lanes.
#pragma once

// GCC 12 warns of its own intrinsics' "undefined" operands (GCC bug 105593).
#pragma GCC diagnostic push
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "simd_common.h"

namespace flashint8::cpu {
namespace {

using Vec = __m512;
constexpr int kLanes = 16;
// Accumulators of the tile product: kTileVectors x kTileRows registers of the 32.
constexpr int kTileVectors = 4;
constexpr int kTileRows = 4;

FLASHINT8_INLINE __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }

FLASHINT8_INLINE Vec zero() { return _mm512_setzero_ps(); }
FLASHINT8_INLINE Vec set1(float x) { return _mm512_set1_ps(x); }
FLASHINT8_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
FLASHINT8_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
FLASHINT8_INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
FLASHINT8_INLINE Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
FLASHINT8_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
// b where either is NaN.
FLASHINT8_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
FLASHINT8_INLINE Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
FLASHINT8_INLINE Vec abs(Vec a) { return _mm512_abs_ps(a); }
// a < b ? x : y
FLASHINT8_INLINE Vec select_less(Vec a, Vec b, Vec x, Vec y) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
FLASHINT8_INLINE Vec round_even(Vec a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// p * 2^n for integral n in [kLowestPower, 127]; 0 at kLowestPower.
constexpr float kLowestPower = -200.0f;
FLASHINT8_INLINE Vec scale_by_power(Vec p, Vec n) { return _mm512_scalef_ps(p, n); }

FLASHINT8_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
FLASHINT8_INLINE void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
FLASHINT8_INLINE Vec load_partial(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(first_lanes(n), p);
}
FLASHINT8_INLINE void store_partial(float* p, Vec v, int64_t n) {
  _mm512_mask_storeu_ps(p, first_lanes(n), v);
}

FLASHINT8_INLINE Vec load(const F16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
FLASHINT8_INLINE Vec load_partial(const F16* p, int64_t n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
FLASHINT8_INLINE __m256i to_f16(Vec v) {
  return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
FLASHINT8_INLINE void store(F16* p, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_f16(v));
}
FLASHINT8_INLINE void store_partial(F16* p, Vec v, int64_t n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), to_f16(v));
}

FLASHINT8_INLINE Vec from_bf16(__m256i bits) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
FLASHINT8_INLINE Vec load(const BF16* p) {
  return from_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
FLASHINT8_INLINE Vec load_partial(const BF16* p, int64_t n) {
  return from_bf16(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
// 2 * kLanes bf16: those at even places, and the others.
FLASHINT8_INLINE void load_even_odd(const BF16* p, Vec* even, Vec* odd) {
  const __m512i pairs = _mm512_loadu_si512(p);
  *even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
  *odd = _mm512_castsi512_ps(
      _mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
// even[0], odd[0], even[1], ...
FLASHINT8_INLINE void interleave(Vec even, Vec odd, Vec* low, Vec* high) {
  const __m512i order = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  *low = _mm512_permutex2var_ps(even, order, odd);
  *high = _mm512_permutex2var_ps(even, _mm512_add_epi32(order, _mm512_set1_epi32(8)), odd);
}
// Round half even; a NaN becomes the quiet NaN.
FLASHINT8_INLINE __m256i to_bf16(Vec v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q),
                                  _mm512_set1_epi32(0x7fc00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
FLASHINT8_INLINE void store(BF16* p, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16(v));
}
FLASHINT8_INLINE void store_partial(BF16* p, Vec v, int64_t n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), to_bf16(v));
}

FLASHINT8_INLINE Vec load(const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}
FLASHINT8_INLINE Vec load_partial(const int8_t* p, int64_t n) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first_lanes(n), p)));
}
// v holds integers in [-127, 127].
FLASHINT8_INLINE void store_partial(int8_t* p, Vec v, int64_t n) {
  _mm_mask_storeu_epi8(p, first_lanes(n), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
}

// s where low <= n < high, else -infinity.
FLASHINT8_INLINE Vec keep_between(Vec s, Vec n, Vec low, Vec high) {
  const __mmask16 above = _mm512_cmp_ps_mask(low, n, _CMP_LE_OQ);
  const __mmask16 inside = _mm512_mask_cmp_ps_mask(above, n, high, _CMP_LT_OQ);
  return _mm512_mask_mov_ps(set1(-__builtin_inff()), inside, s);
}

FLASHINT8_INLINE float sum_lanes(Vec v) { return _mm512_reduce_add_ps(v); }
FLASHINT8_INLINE float max_lanes(Vec v) { return _mm512_reduce_max_ps(v); }

// Lane i of the result is the sum of the lanes of rows[i].
FLASHINT8_INLINE Vec sum_rows(const Vec* rows) {
  Vec quads[4];
  FLASHINT8_UNROLL
  for (int i = 0; i < 4; ++i) {
    const Vec* a = rows + 4 * i;
    const __m512d ab =
        _mm512_castps_pd(add(_mm512_unpacklo_ps(a[0], a[1]), _mm512_unpackhi_ps(a[0], a[1])));
    const __m512d cd =
        _mm512_castps_pd(add(_mm512_unpacklo_ps(a[2], a[3]), _mm512_unpackhi_ps(a[2], a[3])));
    quads[i] = add(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
                   _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
  }
  const Vec low = add(_mm512_shuffle_f32x4(quads[0], quads[1], 0x88),
                      _mm512_shuffle_f32x4(quads[0], quads[1], 0xdd));
  const Vec high = add(_mm512_shuffle_f32x4(quads[2], quads[3], 0x88),
                       _mm512_shuffle_f32x4(quads[2], quads[3], 0xdd));
  return add(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
}

// rows[i] lane j <-> rows[j] lane i.
FLASHINT8_INLINE void transpose(Vec* rows) {
  Vec t[16];
  FLASHINT8_UNROLL
  for (int i = 0; i < 16; i += 4) {  // 4x4 blocks inside each 128-bit quarter
    const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(rows[i], rows[i + 1]));
    const __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(rows[i], rows[i + 1]));
    const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(rows[i + 2], rows[i + 3]));
    const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(rows[i + 2], rows[i + 3]));
    t[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    t[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    t[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    t[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
  FLASHINT8_UNROLL
  for (int j = 0; j < 4; ++j) {  // then the quarters themselves
    const Vec a = _mm512_shuffle_f32x4(t[j], t[4 + j], 0x88);
    const Vec b = _mm512_shuffle_f32x4(t[j], t[4 + j], 0xdd);
    const Vec c = _mm512_shuffle_f32x4(t[8 + j], t[12 + j], 0x88);
    const Vec d = _mm512_shuffle_f32x4(t[8 + j], t[12 + j], 0xdd);
    rows[j] = _mm512_shuffle_f32x4(a, c, 0x88);
    rows[4 + j] = _mm512_shuffle_f32x4(b, d, 0x88);
    rows[8 + j] = _mm512_shuffle_f32x4(a, c, 0xdd);
    rows[12 + j] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
}

#ifdef __AVX512BF16__
#define FLASHINT8_HAS_BF16_DOT 1
// acc lane += a[2i] * b[2i] + a[2i+1] * b[2i+1]: each lane of a and b holds two bf16.
FLASHINT8_INLINE Vec bf16_dot(Vec acc, Vec a, Vec b) {
  return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}
// Lane i: bf16(first[i]) in the low half, bf16(second[i]) in the high half.
FLASHINT8_INLINE Vec pair_as_bf16(Vec first, Vec second) {
  const __m512i packed = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, packed));
}
// 32 bf16 of one row, n of them valid, as 16 lanes of neighbours; 0 past n.
FLASHINT8_INLINE Vec load_bf16_pairs(const BF16* p, int64_t n) {
  const __mmask32 mask = n >= 32 ? 0xffffffffu : (1u << n) - 1;
  return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, p));
}
// Interleaves two rows of 32 bf16: low has (a[0], b[0]) .. (a[15], b[15]), high the rest.
FLASHINT8_INLINE void interleave_bf16(Vec a, Vec b, Vec* low, Vec* high) {
  const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40,
                                         8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i next = _mm512_add_epi16(order, _mm512_set1_epi16(16));
  const __m512i x = _mm512_castps_si512(a);
  const __m512i y = _mm512_castps_si512(b);
  *low = _mm512_castsi512_ps(_mm512_permutex2var_epi16(x, order, y));
  *high = _mm512_castsi512_ps(_mm512_permutex2var_epi16(x, next, y));
}
FLASHINT8_INLINE Vec negate_bf16_pairs(Vec v) {
  return _mm512_castsi512_ps(
      _mm512_xor_si512(_mm512_castps_si512(v), _mm512_set1_epi32(static_cast<int>(0x80008000u))));
}
// 32 int8 as bf16 pairs of neighbours; every int8 is exact in bf16, so its fp32 bits just lose the
// lower half.
FLASHINT8_INLINE Vec int8_to_bf16_pairs(__m128i first, __m128i second) {
  const __m512i low = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(first)));
  const __m512i high = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(second)));
  const __m512i upper_halves =
      _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27,
                       25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  return _mm512_castsi512_ps(_mm512_permutex2var_epi16(low, upper_halves, high));
}
FLASHINT8_INLINE Vec load_int8_pairs(const int8_t* p) {
  const __m128i* halves = reinterpret_cast<const __m128i*>(p);
  return int8_to_bf16_pairs(_mm_loadu_si128(halves), _mm_loadu_si128(halves + 1));
}
FLASHINT8_INLINE Vec load_int8_pairs_partial(const int8_t* p, int64_t n) {
  const __mmask32 mask = (1u << n) - 1;  // n < 32
  const __m256i bytes = _mm256_maskz_loadu_epi8(mask, p);
  return int8_to_bf16_pairs(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
}
#endif

#ifdef __AVX512VNNI__
#define FLASHINT8_HAS_INT8_DOT 1
using IntVec = __m512i;
constexpr int64_t kIntBytes = 64;
FLASHINT8_INLINE IntVec int_zero() { return _mm512_setzero_si512(); }
FLASHINT8_INLINE IntVec int_add(IntVec a, IntVec b) { return _mm512_add_epi32(a, b); }
FLASHINT8_INLINE IntVec load_bytes(const void* p) { return _mm512_loadu_si512(p); }
FLASHINT8_INLINE IntVec load_bytes_partial(const int8_t* p, int64_t n) {  // n < 64
  return _mm512_maskz_loadu_epi8((uint64_t{1} << n) - 1, p);
}
FLASHINT8_INLINE void store_bytes(void* p, IntVec v) { _mm512_storeu_si512(p, v); }
// The first n of the four bytes at p, zeros for the others, in every lane; n from 1 to 4.
FLASHINT8_INLINE IntVec set1_bytes(const int8_t* p, int64_t n) {
  int32_t cell = 0;
  memcpy(&cell, p, static_cast<size_t>(n));
  return _mm512_set1_epi32(cell);
}
// The sum of the lanes, in every lane.
FLASHINT8_INLINE IntVec set1_sum(IntVec v) { return _mm512_set1_epi32(_mm512_reduce_add_epi32(v)); }
// The same bits, as cells of four bytes to move about.
FLASHINT8_INLINE Vec as_cells(IntVec v) { return _mm512_castsi512_ps(v); }
// Each signed byte plus 128, as an unsigned one.
FLASHINT8_INLINE IntVec plus_128(IntVec bytes) {
  return _mm512_xor_si512(bytes, _mm512_set1_epi8(static_cast<char>(0x80)));
}
// acc lane += the sum of the products of its four bytes, those of a unsigned, of b signed.
FLASHINT8_INLINE IntVec byte_dot(IntVec acc, IntVec a, IntVec b) {
  return _mm512_dpbusd_epi32(acc, a, b);
}
FLASHINT8_INLINE IntVec times_minus_128(IntVec v) {
  return _mm512_sub_epi32(int_zero(), _mm512_slli_epi32(v, 7));
}
// Adds the exponents of what is not 0 in v, and counts it.
FLASHINT8_INLINE void add_exponents(Vec v, Vec* exponents, Vec* count) {
  const __mmask16 some = _mm512_cmp_ps_mask(v, zero(), _CMP_NEQ_UQ);
  *exponents = _mm512_mask_add_ps(*exponents, some, *exponents, _mm512_getexp_ps(v));
  *count = _mm512_mask_add_ps(*count, some, *count, set1(1.0f));
}
FLASHINT8_INLINE IntVec one_bytes() { return _mm512_set1_epi8(1); }
FLASHINT8_INLINE Vec to_float(IntVec v) { return _mm512_cvtepi32_ps(v); }
FLASHINT8_INLINE IntVec to_int(Vec v) { return _mm512_cvtps_epi32(v); }  // rounds half to even
// Stores v's lowest bytes, signed, and returns what is left of v, a 256th of it.
FLASHINT8_INLINE IntVec store_digit(int8_t* p, IntVec v) {
  const IntVec digit = _mm512_srai_epi32(_mm512_slli_epi32(v, 24), 24);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(digit));
  return _mm512_srai_epi32(_mm512_sub_epi32(v, digit), 8);
}
#endif

}  // namespace
}  // namespace flashint8::cpu
