// A block's shared memory in the Hopper gemm: a ring of stages of x, one of slots of weights, the
// output on its way out, and the rings' barriers.
#pragma once

#include <cstdint>

#include "../device/shared_barrier.cuh"
#include "variants.h"

namespace flashint8::cuda {

template <int kTile>
struct Sm90Ring {
  static constexpr Sm90Tile kShape = kSm90Tiles[kTile];
  static constexpr int kBlockM = kShape.block_m, kBlockK = kShape.block_k;
  static constexpr int kStages = kShape.stages, kSlots = kShape.slots;
  static constexpr int kStepsPerSlot = kSm90SlotK / kBlockK;
  static constexpr int kBoxBytes = kBlockM * 2 * kSm90BoxK, kBoxes = kBlockK / kSm90BoxK;  // of x
  static constexpr int kBytesX = kBoxes * kBoxBytes, kBytesW = kSm90BlockN * kSm90SlotK;
  static_assert(kBlockM % 16 == 0 && kBoxBytes % 1024 == 0 && kStepsPerSlot <= 2);

  uint32_t base;

  __device__ __forceinline__ uint32_t x(int stage) const { return base + stage * kBytesX; }
  __device__ __forceinline__ uint32_t weights(int slot) const {
    return x(kStages) + slot * kBytesW;
  }
  __device__ __forceinline__ uint32_t staged() const { return weights(kSlots); }

  __device__ __forceinline__ uint32_t full(int stage) const {
    return staged() + kBlockM * 2 * kSm90BlockN + 8 * stage;
  }
  __device__ __forceinline__ uint32_t empty(int stage) const { return full(kStages) + 8 * stage; }
  __device__ __forceinline__ uint32_t full_weights(int slot) const {
    return empty(kStages) + 8 * slot;
  }
  __device__ __forceinline__ uint32_t empty_weights(int slot) const {
    return full_weights(kSlots) + 8 * slot;
  }

  // By one thread. A stage of x is read by the warps of all blocks along n.
  __device__ __forceinline__ void init(int cluster_n) const {
    for (int s = 0; s < kStages; ++s) {
      barrier_init(full(s), 1);
      barrier_init(empty(s), kSm90Warps * cluster_n);
    }
    for (int s = 0; s < kSlots; ++s) {
      barrier_init(full_weights(s), 1);
      barrier_init(empty_weights(s), kSm90Warps);
    }
    barrier_init_fence();
  }
};

}  // namespace flashint8::cuda
