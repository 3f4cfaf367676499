// The sums of a tile that blocks of one cluster share along k, on their way from block to block,
// through their shared memory.
#pragma once

#include "../device/linear_ptx.cuh"
#include "../device/shared_barrier.cuh"
#include "epilogue.cuh"
#include "variants.h"

namespace flashint8::cuda {

// Leaves this thread's sums at `shared`, 16 bytes a thread and fragment, which nobody uses any
// more.
template <int kFragments>
__device__ __forceinline__ void leave_in_shared(uint32_t shared,
                                                const float (&sum)[4 * kFragments]) {
#pragma unroll
  for (int j = 0; j < kFragments; ++j) {
    store_shared_16(shared + j * kSm90SumPitch, &sum[4 * j]);
  }
}

// Adds fragments j and j + 1 of all `parts` blocks, block first, first + step, ..., in that order,
// which is that of k.
__device__ __forceinline__ void add_in_cluster(uint32_t shared, int j, int first, int step,
                                               int parts, float (&total)[8]) {
  constexpr int kAtOnce = 4;
  for (int k = 0; k < parts; k += kAtOnce) {
    float4 from[kAtOnce][2] = {};
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (k + i >= parts) break;
      const auto block = static_cast<uint32_t>(first + (k + i) * step);
      from[i][0] = load_cluster_16(shared + j * kSm90SumPitch, block);
      from[i][1] = load_cluster_16(shared + (j + 1) * kSm90SumPitch, block);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) add_fragment(total + 4 * h, from[i][h]);
    }
  }
}

}  // namespace flashint8::cuda
