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
  // raised: see draw_flag_value.
  __device__ __forceinline__ Sm90Sums(void* workspace, int blocks, uint64_t raised)
      : sums_(static_cast<float4*>(workspace)),
        flags_(reinterpret_cast<uint64_t*>(sums_ + int64_t{blocks} * kOfBlock)),
        raised_(raised) {}

  __device__ __forceinline__ void leave(int block, const float* sum) const {
    float4* mine = sums_ + int64_t{block} * kOfBlock + threadIdx.x;
#pragma unroll
    for (int j = 0; j < kFragments; ++j) {
      __stcg(mine + j * kThreads,
             make_float4(sum[4 * j], sum[4 * j + 1], sum[4 * j + 2], sum[4 * j + 3]));
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) raise_flag(flag(block), raised_);
  }

  // What blocks first, first + step, ... have left, `count` of them, in this order.
  __device__ __forceinline__ void add(int first, int step, int count, float* sum) const {
    constexpr int kFragmentsAtOnce = kFragments % 16 == 0 ? 16 : kFragments < 8 ? kFragments : 8;
    constexpr int kBlocksAtOnce = kFragments < 16 ? 16 / kFragments : 1;
    static_assert(kFragments % kFragmentsAtOnce == 0);
#pragma unroll 1
    for (int i = threadIdx.x % 32; i < count; i += 32) {
      take_flag(flag(first + i * step), raised_);
    }
    __syncwarp();
#pragma unroll 1
    for (int i = 0; i < count; i += kBlocksAtOnce) {
#pragma unroll
      for (int begin = 0; begin < kFragments; begin += kFragmentsAtOnce) {
        float4 v[kBlocksAtOnce][kFragmentsAtOnce] = {};
#pragma unroll
        for (int b = 0; b < kBlocksAtOnce; ++b) {
          if (i + b >= count) break;
          const float4* theirs = sums_ + int64_t{first + (i + b) * step} * kOfBlock + threadIdx.x;
#pragma unroll
          for (int j = 0; j < kFragmentsAtOnce; ++j) {
            v[b][j] = __ldcg(theirs + (begin + j) * kThreads);
          }
        }
#pragma unroll
        for (int b = 0; b < kBlocksAtOnce; ++b) {
#pragma unroll
          for (int j = 0; j < kFragmentsAtOnce; ++j) add_fragment(sum + 4 * (begin + j), v[b][j]);
        }
      }
    }
  }

 private:
  static constexpr int kThreads = 32 * kSm90Warps;
  static constexpr int kOfBlock = kFragments * kThreads;

  __device__ __forceinline__ uint64_t* flag(int block) const {
    return flags_ + block * kSm90Warps + threadIdx.x / 32;
  }

  float4* sums_;
  uint64_t* flags_;
  uint64_t raised_;
};

}  // namespace flashint8::cuda
