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
  return wgmma_descriptor(address, box_bytes / 16);
}

template <typename T, int kN>
struct WgmmaScores;
template <typename T, int kN>
struct WgmmaValues;

// The instructions for one type of A and B. Of the values A0 to B are the operands behind the sums.
#define FLASHINT8_WGMMA_SCORES(TYPE)                                                       \
  asm volatile(                                                                            \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"                                         \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {" FLASHINT8_NAMES_64 \
      "}, %64, %65, p, 1, 1, 0, 0;\n}\n"                                                   \
      : FLASHINT8_SUMS_64                                                                  \
      : "l"(a), "l"(b), "r"(int{accumulate}))
#define FLASHINT8_WGMMA_VALUES(TYPE, COLUMNS, REGISTERS, A0, A1, A2, A3, B)      \
  asm volatile(                                                                  \
      "{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"                                 \
      "wgmma.mma_async.sync.aligned.m64n" #COLUMNS "k16.f32." TYPE "." TYPE      \
      " {" FLASHINT8_NAMES_##REGISTERS "}, {" A0 ", " A1 ", " A2 ", " A3 "}, " B \
                                       ", p, 1, 1, 1;\n}\n"                      \
      : FLASHINT8_SUMS_##REGISTERS                                               \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define FLASHINT8_WGMMA_VALUES_OF(COLUMNS, REGISTERS, ...)                                         \
  template <typename T>                                                                            \
  struct WgmmaValues<T, COLUMNS> {                                                                 \
    static __device__ __forceinline__ void multiply(float (&d)[REGISTERS], const uint32_t (&a)[4], \
                                                    uint64_t b) {                                  \
      if constexpr (std::is_same_v<T, __half>) {                                                   \
        FLASHINT8_WGMMA_VALUES("f16", COLUMNS, REGISTERS, __VA_ARGS__);                            \
      } else {                                                                                     \
        FLASHINT8_WGMMA_VALUES("bf16", COLUMNS, REGISTERS, __VA_ARGS__);                           \
      }                                                                                            \
    }                                                                                              \
  };

template <typename T>
struct WgmmaScores<T, 128> {
  static __device__ __forceinline__ void multiply(float (&d)[64], uint64_t a, uint64_t b,
                                                  bool accumulate) {
    if constexpr (std::is_same_v<T, __half>) {
      FLASHINT8_WGMMA_SCORES("f16");
    } else {
      FLASHINT8_WGMMA_SCORES("bf16");
    }
  }
};
FLASHINT8_WGMMA_VALUES_OF(64, 32, "%32", "%33", "%34", "%35", "%36")
FLASHINT8_WGMMA_VALUES_OF(128, 64, "%64", "%65", "%66", "%67", "%68")
#undef FLASHINT8_WGMMA_SCORES
#undef FLASHINT8_WGMMA_VALUES
#undef FLASHINT8_WGMMA_VALUES_OF

}  // namespace flashint8::cuda
