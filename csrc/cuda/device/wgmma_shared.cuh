// Products of a warpgroup whose B, or A and B, lie in shared memory as the copy engine leaves them
// with 128-byte swizzle; see wgmma.cuh. For attention:
//   WgmmaScores<T, kN>   D[64][kN] (+)= A[64][16] B[kN][16]^T, rows of A and B run along k;
//   WgmmaValues<T, kN>   D[64][kN] += A[64][16] B[16][kN], A from registers, rows of B along n.
#pragma once

#include <type_traits>

#include "wgmma.cuh"
#include "wgmma_operands.cuh"

namespace flashint8::cuda {

// Describes B of WgmmaValues: 64 columns are a box of rows of 128 bytes, the next 64 columns lie
// `box_bytes` on. 16 further values of k are 2048 bytes on: 128 more in the descriptor.
__device__ __forceinline__ uint64_t wgmma_values(uint32_t address, uint32_t box_bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kGroupStride = uint64_t{1024 / 16} << 32;
  return kSwizzle128 | kGroupStride | (uint64_t{box_bytes / 16} << 16) | ((address & 0x3ffff) >> 4);
}

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
          : FLASHINT8_SUMS_64
          : "l"(a), "l"(b), "r"(int{accumulate}));
    } else {
      asm volatile(
          "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" FLASHINT8_NAMES_64
          "}, %64, %65, p, 1, 1, 0, 0;\n}\n"
          : FLASHINT8_SUMS_64
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
          : FLASHINT8_SUMS_32
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    } else {
      asm volatile(
          "{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" FLASHINT8_NAMES_32
          "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}\n"
          : FLASHINT8_SUMS_32
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
          : FLASHINT8_SUMS_64
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    } else {
      asm volatile(
          "{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" FLASHINT8_NAMES_64
          "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}\n"
          : FLASHINT8_SUMS_64
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    }
  }
};

}  // namespace flashint8::cuda
