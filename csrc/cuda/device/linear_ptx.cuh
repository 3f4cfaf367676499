// The PTX that the INT8 linear kernels alone use: cp.async of part of 16 bytes and with cache
// hints, shared-memory vectors by address, movmatrix.
#pragma once

#include <cstdint>

#include "shared_memory.cuh"

namespace flashint8::cuda {

// Weights that one block alone reads leave L2 first, so that x and partial sums stay there.
__device__ __forceinline__ uint64_t l2_evict_first_policy() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// For what several blocks read.
__device__ __forceinline__ uint64_t l2_evict_normal_policy() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// 16 bytes (kWhole) or the first `bytes` of them and zeros, from src + 16 * index. The address is
// formed inside: left to itself the compiler keeps a 64-bit pointer for every copy of an unrolled
// loop, and spills.
template <bool kWhole>
__device__ __forceinline__ void cp_async_16_indexed(uint32_t dst, const void* src, uint32_t index,
                                                    int bytes) {
  if constexpr (kWhole) {
    asm volatile(
        "{\n.reg .b64 address;\n"
        "mad.wide.u32 address, %2, 16, %1;\n"
        "cp.async.cg.shared.global [%0], [address], 16;\n}" ::"r"(dst),
        "l"(src), "r"(index)
        : "memory");
  } else {
    asm volatile(
        "{\n.reg .b64 address;\n"
        "mad.wide.u32 address, %2, 16, %1;\n"
        "cp.async.cg.shared.global [%0], [address], 16, %3;\n}" ::"r"(dst),
        "l"(src), "r"(index), "r"(min(max(bytes, 0), 16))
        : "memory");
  }
}

template <bool kWhole>
__device__ __forceinline__ void cp_async_16_indexed(uint32_t dst, const void* src, uint32_t index,
                                                    int bytes, uint64_t policy) {
  if constexpr (kWhole) {
    asm volatile(
        "{\n.reg .b64 address;\n"
        "mad.wide.u32 address, %2, 16, %1;\n"
        "cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [address], 16, %3;\n}" ::"r"(dst),
        "l"(src), "r"(index), "l"(policy)
        : "memory");
  } else {
    asm volatile(
        "{\n.reg .b64 address;\n"
        "mad.wide.u32 address, %2, 16, %1;\n"
        "cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [address], 16, %3, %4;\n}" ::"r"(
            dst),
        "l"(src), "r"(index), "r"(min(max(bytes, 0), 16)), "l"(policy)
        : "memory");
  }
}

__device__ __forceinline__ uint2 load_shared_8(uint32_t address) {
  uint2 v;
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address) : "memory");
  return v;
}

// Two bytes, in the low half.
__device__ __forceinline__ uint32_t load_shared_2(uint32_t address) {
  uint32_t v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
  return v;
}

__device__ __forceinline__ void store_shared_16(uint32_t address, const float* v) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(v[0]), "f"(v[1]),
               "f"(v[2]), "f"(v[3])
               : "memory");
}

// The counterpart of ldmatrix.trans (sm_90): of four 8 x 8 matrices lane (g, t) gives M[g][2t, 2t +
// 1]; columns of matrix i are written as rows of 16 bytes, at the addresses that lanes 8i .. 8i + 7
// give.
__device__ __forceinline__ void stmatrix_x4_trans(uint32_t address, const uint32_t (&v)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(address),
      "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
      : "memory");
#endif
}

// The lane, read anew: what an epilogue computes from it takes no register in the loop before.
__device__ __forceinline__ int read_lane() {
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

// Two matrices, at the addresses of lanes 0 .. 15.
__device__ __forceinline__ void stmatrix_x2_trans(uint32_t address, uint32_t v0, uint32_t v1) {
#if __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};\n" ::"r"(address),
               "r"(v0), "r"(v1)
               : "memory");
#endif
}

// Transposes an 8 x 8 matrix of 16-bit values spread over the warp: lane (g, t) gives M[g][2t,
// 2t+1] and gets M[2t, 2t+1][g].
__device__ __forceinline__ uint32_t transpose_8x8(uint32_t v) {
  uint32_t d;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(d) : "r"(v));
  return d;
}

}  // namespace flashint8::cuda
