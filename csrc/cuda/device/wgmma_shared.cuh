// Products of a warpgroup whose B, or A and B, lie in shared memory as the copy engine leaves them
// with 128-byte swizzle; see wgmma.cuh. For attention:
//   WgmmaScores<T, kN>   D[64][kN] (+)= A[64][16] B[kN][16]^T, rows of A and B run along k;
//   WgmmaValues<T, kN>   D[64][kN] += A[64][16] B[16][kN], A from registers, rows of B along n.
#pragma once

#include <type_traits>

#include "wgmma.cuh"

namespace flashint8::cuda {

// Describes B of WgmmaValues: 64 columns are a box of rows of 128 bytes, the next 64 columns lie
// `box_bytes` on. 16 further values of k are 2048 bytes on: 128 more in the descriptor.
__device__ __forceinline__ uint64_t wgmma_values(uint32_t address, uint32_t box_bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kGroupStride = uint64_t{1024 / 16} << 32;
  return kSwizzle128 | kGroupStride | (uint64_t{box_bytes / 16} << 16) | ((address & 0x3ffff) >> 4);
}

// Registers of sums, by name and as operands.
#define FLASHINT8_SUMS_8(i)                                                                   \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define FLASHINT8_SUMS_32(i) \
  FLASHINT8_SUMS_8(i), FLASHINT8_SUMS_8(i + 8), FLASHINT8_SUMS_8(i + 16), FLASHINT8_SUMS_8(i + 24)
#define FLASHINT8_NAMES_32                                                 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define FLASHINT8_NAMES_64                                                           \
  FLASHINT8_NAMES_32                                                                 \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

template <typename T, int kN>
struct WgmmaScores;
template <typename T, int kN>
struct WgmmaValues;

template <typename T>
struct WgmmaScores<T, 128> {
  static __device__ __forceinline__ void multiply(float (&d)[64], uint64_t a, uint64_t b,
                                                  bool accumulate) {
    if constexpr (std::is_same_v<T, __half>) {
      asm volatile(
          "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" FLASHINT8_NAMES_64
          "}, %64, %65, p, 1, 1, 0, 0;\n}\n"
          : FLASHINT8_SUMS_32(0), FLASHINT8_SUMS_32(32)
          : "l"(a), "l"(b), "r"(int{accumulate}));
    } else {
      asm volatile(
          "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" FLASHINT8_NAMES_64
          "}, %64, %65, p, 1, 1, 0, 0;\n}\n"
          : FLASHINT8_SUMS_32(0), FLASHINT8_SUMS_32(32)
          : "l"(a), "l"(b), "r"(int{accumulate}));
    }
  }
};

template <typename T>
struct WgmmaValues<T, 64> {
  static __device__ __forceinline__ void multiply(float (&d)[32], const uint32_t (&a)[4],
                                                  uint64_t b) {
    if constexpr (std::is_same_v<T, __half>) {
      asm volatile(
          "{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" FLASHINT8_NAMES_32
          "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}\n"
          : FLASHINT8_SUMS_32(0)
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    } else {
      asm volatile(
          "{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" FLASHINT8_NAMES_32
          "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}\n"
          : FLASHINT8_SUMS_32(0)
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    }
  }
};

template <typename T>
struct WgmmaValues<T, 128> {
  static __device__ __forceinline__ void multiply(float (&d)[64], const uint32_t (&a)[4],
                                                  uint64_t b) {
    if constexpr (std::is_same_v<T, __half>) {
      asm volatile(
          "{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" FLASHINT8_NAMES_64
          "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}\n"
          : FLASHINT8_SUMS_32(0), FLASHINT8_SUMS_32(32)
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    } else {
      asm volatile(
          "{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" FLASHINT8_NAMES_64
          "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}\n"
          : FLASHINT8_SUMS_32(0), FLASHINT8_SUMS_32(32)
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    }
  }
};

#undef FLASHINT8_SUMS_8
#undef FLASHINT8_SUMS_32
#undef FLASHINT8_NAMES_32
#undef FLASHINT8_NAMES_64

}  // namespace flashint8::cuda
