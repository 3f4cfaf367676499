// Tensor-core products of a warpgroup (wgmma, sm_90a): D[64][kN] += A[64][16] B[kN][16]^T, A from
// registers, B from shared memory, fp32 sums. They run on while the warpgroup goes on: registers of
// A and D may not be touched before wgmma_wait() says so.
//
// With w = warp % 4, g = lane / 4, t = lane % 4 a lane holds, as with mma.cuh,
//   A: a[0] = (16w + g, 2t..), a[1] = (16w + g + 8, 2t..), a[2], a[3] the same at 2t + 8..
//   D: d[4j], d[4j + 1] = (16w + g, 8j + 2t..), d[4j + 2], d[4j + 3] = (16w + g + 8, 8j + 2t..)
// where ".." is the element and the next one.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "wgmma_operands.cuh"

namespace flashint8::cuda {

// Before the first product of a group: what registers got before is seen by it.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}

// Waits until at most kPending of the newest groups are still under way.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}

// The compiler moves nothing that touches these registers past this place: it does not know that
// products write theirs until wgmma_wait(), and read theirs from wgmma_fence() on.
template <int kCount>
__device__ __forceinline__ void pin_registers(float (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(x[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void pin_registers(uint32_t (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(x[i])::"memory");
}

// Registers that each thread of the warpgroup keeps from here on, given back to or taken from the
// block's. A kernel starts with as many as its launch bounds leave it.
template <int kRegisters>
__device__ __forceinline__ void give_back_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

// Describes a matrix of rows of 128 bytes with 128-byte swizzle, eight of them in a 1024-byte
// group, from `address` on. `leading`: bytes / 16 from one box of rows to the next where the
// instruction reads several (1 where it does not).
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t address, uint32_t leading) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kGroupStride = uint64_t{1024 / 16} << 32;
  return kSwizzle128 | kGroupStride | (uint64_t{leading} << 16) | ((address & 0x3ffff) >> 4);
}

// Describes B as the copy engine leaves it with 128-byte swizzle: rows of 64 16-bit values, 128
// bytes each, eight of them in a 1024-byte group; `address` is 1024-byte aligned. 16 further values
// of k are 32 bytes on.
__device__ __forceinline__ uint64_t wgmma_matrix(uint32_t address) {
  return wgmma_descriptor(address, 1);
}

// The same matrix from `bytes`, a multiple of 16, further on. The low word changes alone.
__device__ __forceinline__ uint64_t wgmma_advance(uint64_t matrix, uint32_t bytes) {
  return matrix & ~uint64_t{0xffffffff} | static_cast<uint32_t>(matrix) + bytes / 16;
}

// `accumulate` false: D is overwritten.
template <typename T, int kN>
struct Wgmma;

// The instruction, of REGISTERS sums, for one type of A and B; %A .. are its operands behind the
// sums.
#define FLASHINT8_WGMMA(TYPE, COLUMNS, REGISTERS, A0, A1, A2, A3, B, ACCUMULATE)           \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ACCUMULATE                              \
               ", 0;\nwgmma.mma_async.sync.aligned.m64n" #COLUMNS "k16.f32." TYPE "." TYPE \
               " {" FLASHINT8_NAMES_##REGISTERS "}, {" A0 ", " A1 ", " A2 ", " A3 "}, " B  \
                                                ", p, 1, 1, 0;\n}\n"                       \
               : FLASHINT8_SUMS_##REGISTERS                                                \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate}))
#define FLASHINT8_WGMMA_OF(COLUMNS, REGISTERS, ...)                                                \
  template <typename T>                                                                            \
  struct Wgmma<T, COLUMNS> {                                                                       \
    static __device__ __forceinline__ void multiply(float (&d)[REGISTERS], const uint32_t (&a)[4], \
                                                    uint64_t b, bool accumulate) {                 \
      if constexpr (std::is_same_v<T, __half>) {                                                   \
        FLASHINT8_WGMMA("f16", COLUMNS, REGISTERS, __VA_ARGS__);                                   \
      } else {                                                                                     \
        FLASHINT8_WGMMA("bf16", COLUMNS, REGISTERS, __VA_ARGS__);                                  \
      }                                                                                            \
    }                                                                                              \
  };
FLASHINT8_WGMMA_OF(32, 16, "%16", "%17", "%18", "%19", "%20", "%21")
FLASHINT8_WGMMA_OF(64, 32, "%32", "%33", "%34", "%35", "%36", "%37")
FLASHINT8_WGMMA_OF(128, 64, "%64", "%65", "%66", "%67", "%68", "%69")
FLASHINT8_WGMMA_OF(192, 96, "%96", "%97", "%98", "%99", "%100", "%101")
FLASHINT8_WGMMA_OF(256, 128, "%128", "%129", "%130", "%131", "%132", "%133")
#undef FLASHINT8_WGMMA
#undef FLASHINT8_WGMMA_OF

}  // namespace flashint8::cuda
