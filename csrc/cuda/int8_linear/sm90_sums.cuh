// The sums of streamed tiles (sm90_schedule.cuh) on their way from block to block, through the
// workspace: of every block one tile of fp32 sums, then of every block and warp a flag that says
// that they are there. A warp leaves what the same warp of another block adds, lane for lane.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../device/global_flag.cuh"
#include "epilogue.cuh"
#include "variants.h"

namespace flashint8::cuda {

template <int kFragments>
class Sm90Sums {
 public:
  __device__ __forceinline__ Sm90Sums(void* workspace, int blocks)
      : sums_(static_cast<float4*>(workspace)),
        flags_(reinterpret_cast<uint32_t*>(sums_ + int64_t{blocks} * kOfBlock)) {}

  __device__ __forceinline__ void leave(int block, const float* sum) const {
    float4* mine = sums_ + int64_t{block} * kOfBlock + threadIdx.x;
#pragma unroll
    for (int j = 0; j < kFragments; ++j) {
      __stcg(mine + j * kThreads,
             make_float4(sum[4 * j], sum[4 * j + 1], sum[4 * j + 2], sum[4 * j + 3]));
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) raise_flag(flag(block));
  }

  __device__ __forceinline__ void add(int block, float* sum) const {
    wait_for_flag(flag(block));
    __syncwarp();
    const float4* theirs = sums_ + int64_t{block} * kOfBlock + threadIdx.x;
    constexpr int kAtOnce = kFragments % 16 == 0 ? 16 : 8;
#pragma unroll
    for (int begin = 0; begin < kFragments; begin += kAtOnce) {
      float4 v[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) v[j] = __ldcg(theirs + (begin + j) * kThreads);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) add_fragment(sum + 4 * (begin + j), v[j]);
    }
  }

 private:
  static constexpr int kThreads = 32 * kSm90Warps;
  static constexpr int kOfBlock = kFragments * kThreads;

  __device__ __forceinline__ uint32_t* flag(int block) const {
    return flags_ + block * kSm90Warps + threadIdx.x / 32;
  }

  float4* sums_;
  uint32_t* flags_;
};

}  // namespace flashint8::cuda
