// The vocabulary in GCC/Clang vector extensions: 4 lanes, which become SSE2, NEON or plain code.
#pragma once

#include "simd_common.h"

namespace flashint8::cpu {
namespace {

typedef float Vec __attribute__((vector_size(16)));
typedef int32_t IntVec __attribute__((vector_size(16)));
typedef uint32_t UintVec __attribute__((vector_size(16)));
constexpr int kLanes = 4;
// Accumulators of the tile product: 12 registers, which SSE2's 16 and NEON's 32 both hold.
constexpr int kTileVectors = 3;
constexpr int kTileRows = 4;

FLASHINT8_INLINE Vec set1(float x) { return Vec{x, x, x, x}; }
FLASHINT8_INLINE Vec zero() { return set1(0.0f); }
FLASHINT8_INLINE Vec add(Vec a, Vec b) { return a + b; }
FLASHINT8_INLINE Vec sub(Vec a, Vec b) { return a - b; }
FLASHINT8_INLINE Vec mul(Vec a, Vec b) { return a * b; }
FLASHINT8_INLINE Vec div(Vec a, Vec b) { return a / b; }
FLASHINT8_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
// b where either is NaN.
FLASHINT8_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }
FLASHINT8_INLINE Vec min(Vec a, Vec b) { return a < b ? a : b; }
FLASHINT8_INLINE Vec abs(Vec a) { return (Vec)((UintVec)a & 0x7fffffffu); }
// a < b ? x : y
FLASHINT8_INLINE Vec select_less(Vec a, Vec b, Vec x, Vec y) { return a < b ? x : y; }
// |a| < 2^22. The addition rounds to an integer, half to even.
FLASHINT8_INLINE Vec round_even(Vec a) {
  const Vec magic = set1(12582912.0f);  // 1.5 * 2^23
  return (a + magic) - magic;
}
// p * 2^n for integral n in [kLowestPower, 127]; 0 at kLowestPower.
constexpr float kLowestPower = -127.0f;
FLASHINT8_INLINE Vec scale_by_power(Vec p, Vec n) {
  const IntVec exponent = (IntVec)(n + set1(12582912.0f)) - 0x4b400000 + 127;
  return p * (Vec)((UintVec)exponent << 23);
}

FLASHINT8_INLINE Vec load(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
FLASHINT8_INLINE void store(float* p, Vec v) { memcpy(p, &v, sizeof v); }
FLASHINT8_INLINE Vec load_partial(const float* p, int64_t n) {
  float buffer[4] = {};
  memcpy(buffer, p, static_cast<size_t>(n) * sizeof(float));
  return load(buffer);
}
FLASHINT8_INLINE void store_partial(float* p, Vec v, int64_t n) {
  memcpy(p, &v, static_cast<size_t>(n) * sizeof(float));
}

// Exact for every fp16: the exponent moves by a multiplication with 2^112, which also normalises
// subnormal numbers; infinities and NaN get their exponent set.
FLASHINT8_INLINE Vec from_f16(UintVec half) {
  const UintVec magnitude = (half & 0x7fffu) << 13;
  const UintVec scaled = (UintVec)((Vec)magnitude * set1(5.192296858534828e33f));
  const UintVec special = (UintVec)(magnitude >= 0x0f800000u);  // all ones where inf or NaN
  return (Vec)(scaled | (special & 0x7f800000u) | ((half & 0x8000u) << 16));
}
// Round half even, overflow to infinity, NaN stays NaN.
FLASHINT8_INLINE UintVec to_f16(Vec v) {
  const UintVec bits = (UintVec)v;
  const UintVec magnitude = bits & 0x7fffffffu;
  // Normal results: rebias, add just under half an ulp (and one more if odd), drop 13 bits.
  const UintVec normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal results: adding 0.5 lines the wanted bits up at the bottom of the mantissa.
  const UintVec subnormal = (UintVec)((Vec)magnitude + set1(0.5f)) - 0x3f000000u;
  const UintVec is_small = (UintVec)(magnitude < 0x38800000u);
  const UintVec is_large = (UintVec)(magnitude >= 0x47800000u);
  const UintVec is_nan = (UintVec)(magnitude > 0x7f800000u);
  UintVec half = (subnormal & is_small) | (normal & ~is_small);
  half = (half & ~is_large) | (0x7c00u & is_large) | (0x0200u & is_nan);
  return half | ((bits >> 16) & 0x8000u);
}
FLASHINT8_INLINE Vec from_bf16(UintVec bits) { return (Vec)(bits << 16); }
// 2 * kLanes bf16: those at even places, and the others.
FLASHINT8_INLINE void load_even_odd(const BF16* p, Vec* even, Vec* odd) {
  uint16_t b[8];
  memcpy(b, p, sizeof b);
  *even = from_bf16(UintVec{b[0], b[2], b[4], b[6]});
  *odd = from_bf16(UintVec{b[1], b[3], b[5], b[7]});
}
// even[0], odd[0], even[1], ...
FLASHINT8_INLINE void interleave(Vec even, Vec odd, Vec* low, Vec* high) {
  *low = __builtin_shufflevector(even, odd, 0, 4, 1, 5);
  *high = __builtin_shufflevector(even, odd, 2, 6, 3, 7);
}
FLASHINT8_INLINE UintVec to_bf16(Vec v) {
  const UintVec bits = (UintVec)v;
  const UintVec is_nan = (UintVec)((bits & 0x7fffffffu) > 0x7f800000u);
  const UintVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return (rounded & ~is_nan) | (0x7fc0u & is_nan);
}

FLASHINT8_INLINE UintVec load_16bit(const void* p, int64_t n) {
  uint16_t b[4] = {};
  memcpy(b, p, static_cast<size_t>(n) * 2);
  return UintVec{b[0], b[1], b[2], b[3]};
}
FLASHINT8_INLINE void store_16bit(void* p, UintVec v, int64_t n) {
  const uint16_t b[4] = {static_cast<uint16_t>(v[0]), static_cast<uint16_t>(v[1]),
                         static_cast<uint16_t>(v[2]), static_cast<uint16_t>(v[3])};
  memcpy(p, b, static_cast<size_t>(n) * 2);
}
FLASHINT8_INLINE Vec load(const F16* p) { return from_f16(load_16bit(p, 4)); }
FLASHINT8_INLINE Vec load_partial(const F16* p, int64_t n) { return from_f16(load_16bit(p, n)); }
FLASHINT8_INLINE void store(F16* p, Vec v) { store_16bit(p, to_f16(v), 4); }
FLASHINT8_INLINE void store_partial(F16* p, Vec v, int64_t n) { store_16bit(p, to_f16(v), n); }
FLASHINT8_INLINE Vec load(const BF16* p) { return from_bf16(load_16bit(p, 4)); }
FLASHINT8_INLINE Vec load_partial(const BF16* p, int64_t n) { return from_bf16(load_16bit(p, n)); }
FLASHINT8_INLINE void store(BF16* p, Vec v) { store_16bit(p, to_bf16(v), 4); }
FLASHINT8_INLINE void store_partial(BF16* p, Vec v, int64_t n) { store_16bit(p, to_bf16(v), n); }

FLASHINT8_INLINE Vec load_partial(const int8_t* p, int64_t n) {
  int8_t b[4] = {};
  memcpy(b, p, static_cast<size_t>(n));
  return __builtin_convertvector((IntVec{b[0], b[1], b[2], b[3]}), Vec);
}
FLASHINT8_INLINE Vec load(const int8_t* p) { return load_partial(p, 4); }
// v holds integers in [-127, 127].
FLASHINT8_INLINE void store_partial(int8_t* p, Vec v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = static_cast<int8_t>(v[i]);
}

// s where low <= n < high, else -infinity.
FLASHINT8_INLINE Vec keep_between(Vec s, Vec n, Vec low, Vec high) {
  const UintVec inside = (UintVec)(low <= n) & (UintVec)(n < high);
  return (Vec)(((UintVec)s & inside) | (0xff800000u & ~inside));
}

FLASHINT8_INLINE float sum_lanes(Vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }
FLASHINT8_INLINE float max_lanes(Vec v) {
  const float a = v[0] > v[1] ? v[0] : v[1];
  const float b = v[2] > v[3] ? v[2] : v[3];
  return a > b ? a : b;
}

// rows[i] lane j <-> rows[j] lane i.
FLASHINT8_INLINE void transpose(Vec* r) {
  const Vec a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5);
  const Vec b = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
  const Vec c = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
  const Vec d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
  r[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
  r[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
  r[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
  r[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
}
// Lane i of the result is the sum of the lanes of rows[i].
FLASHINT8_INLINE Vec sum_rows(const Vec* rows) {
  Vec t[4] = {rows[0], rows[1], rows[2], rows[3]};
  transpose(t);
  return (t[0] + t[2]) + (t[1] + t[3]);
}

}  // namespace
}  // namespace flashint8::cpu
