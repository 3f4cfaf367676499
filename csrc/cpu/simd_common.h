// Shared by simd_portable.h, simd_avx2.h and simd_avx512.h: each of them defines the same small
// vocabulary (Vec, kLanes, load, store, fma, ...) for one instruction set.
//
// Only the kernels_*.cpp files include these headers, and each of those is compiled with flags of
// its own. Everything here therefore stands in an anonymous namespace, and nothing here calls an
// inline function that has external linkage (std::min, std::vector, the inline helpers of the
// contract's headers): the linker keeps one copy of such a function for the whole library, and that
// could be the copy that uses AVX-512.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "flashint8/types.h"

#if defined(__clang__)
#define FLASHINT8_UNROLL _Pragma("unroll")
#else
#define FLASHINT8_UNROLL _Pragma("GCC unroll 32")
#endif
#define FLASHINT8_INLINE inline __attribute__((always_inline))

namespace flashint8::cpu {
namespace {

// 16-bit elements in memory.
struct F16 {
  uint16_t bits;
};
struct BF16 {
  uint16_t bits;
};

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::kFloat32;
};
template <>
struct DTypeOf<F16> {
  static constexpr DType value = DType::kFloat16;
};
template <>
struct DTypeOf<BF16> {
  static constexpr DType value = DType::kBFloat16;
};

constexpr int64_t round_up(int64_t x, int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}
constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Asks into L2 for the cache line that lies `bytes` behind p, which need not exist. The hardware's
// own prefetching stops at each page, and rows of a weight or a cache are often no longer than one.
// Lines asked into L1 would occupy the few misses that L1 can have at a time.
FLASHINT8_INLINE void prefetch(const void* p, int64_t bytes) {
  __builtin_prefetch(
      reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(bytes)),
      0, 2);
}
constexpr int64_t kCacheLine = 64;

}  // namespace
}  // namespace flashint8::cpu
