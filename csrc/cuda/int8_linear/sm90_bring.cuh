// The copying side of the Hopper gemm: one thread asks the copy engine for the weights and the rows
// of x of all pieces of its block, as far ahead as the rings hold.
#pragma once

#include <cuda.h>

#include "../device/linear_ptx.cuh"
#include "../device/tensor_copy.cuh"
#include "sm90_ring.cuh"
#include "sm90_schedule.cuh"

namespace flashint8::cuda {

template <int kTile>
__device__ __forceinline__ void bring_weights(const Sm90Ring<kTile>& ring, int slot,
                                              const CUtensorMap& map_w, int column, int channel,
                                              uint64_t policy) {
  const uint32_t barrier = ring.full_weights(slot);
  barrier_expect(barrier, Sm90Ring<kTile>::kBytesW);
  copy_box(ring.weights(slot), &map_w, column, channel, barrier, policy);
}

// Weights are read once, or by the tiles of all rows.
__device__ __forceinline__ uint64_t sm90_weight_policy(const Sm90Schedule& schedule) {
  return schedule.tiles_m == 1 ? l2_evict_first_policy() : l2_evict_normal_policy();
}

// Slots of weights that the first piece fills before the ring goes round.
template <int kTile>
__device__ __forceinline__ int sm90_first_slots(const Sm90Piece& first) {
  using Ring = Sm90Ring<kTile>;
  return min(Ring::kSlots, (first.num_steps + Ring::kStepsPerSlot - 1) / Ring::kStepsPerSlot);
}

// Asks for the first weights, which are ready: while the kernel ahead may still run.
template <int kTile>
__device__ __forceinline__ void bring_first_weights(const Sm90Ring<kTile>& ring,
                                                    const Sm90Schedule& schedule,
                                                    const Sm90Piece& first,
                                                    const CUtensorMap& map_w) {
  const uint64_t policy = sm90_weight_policy(schedule);
  const int channel = sm90_channel(schedule, first.tile), count = sm90_first_slots<kTile>(first);
  int column = first.first_step * Sm90Ring<kTile>::kBlockK;
  for (int s = 0; s < count; ++s, column += kSm90SlotK) {
    bring_weights(ring, s, map_w, column, channel, policy);
  }
}

// By one thread of a warp that does nothing else. `ready`: bring_first_weights() was called.
template <int kTile>
__device__ __forceinline__ void bring_pieces(const Sm90Ring<kTile>& ring,
                                             const Sm90Schedule& schedule, const Sm90Place& place,
                                             const CUtensorMap& map_w, const CUtensorMap& map_x,
                                             bool ready) {
  using Ring = Sm90Ring<kTile>;
  // Rows of x that the blocks along n need alike: each brings a part of them to all.
  const int shared_rows = schedule.box_rows;
  const uint32_t bytes = Ring::kBoxes * shared_rows * schedule.cluster_n * (2 * kSm90BoxK);
  const auto blocks =
      static_cast<uint16_t>(((1 << schedule.cluster_n) - 1) << (place.part * schedule.cluster_n));
  const uint64_t policy_w = sm90_weight_policy(schedule);
  const uint64_t policy_x = l2_evict_normal_policy();
  const uint32_t offset_x = static_cast<uint32_t>(place.rank * shared_rows) * (2 * kSm90BoxK);
  RingPlace<Ring::kStages> stage{0, 1};  // the parity of a phase before the first: they begin empty
  RingPlace<Ring::kSlots> slot{0, 1};
  int under_way = ready ? sm90_first_slots<kTile>(sm90_first_piece(schedule)) : 0;
  for (Sm90Piece piece = sm90_first_piece(schedule); piece.num_steps > 0;
       piece = sm90_next_piece(schedule, piece)) {
    const int row = schedule.row_of(piece.tile, Ring::kBlockM) + place.rank * shared_rows;
    const int channel = sm90_channel(schedule, piece.tile);
#pragma unroll 1
    for (int i = 0; i < piece.num_steps; ++i) {
      const int column = (piece.first_step + i) * Ring::kBlockK;
      if (i % Ring::kStepsPerSlot == 0) {
        if (under_way > 0) {
          --under_way;
        } else {
          barrier_wait(ring.empty_weights(slot.index), slot.parity);
          bring_weights(ring, slot.index, map_w, column, channel, policy_w);
        }
        slot.advance();
      }
      const uint32_t barrier = ring.full(stage.index);
      barrier_wait(ring.empty(stage.index), stage.parity);
      barrier_expect(barrier, bytes);
#pragma unroll
      for (int box = 0; box < Ring::kBoxes; ++box) {
        const uint32_t x = ring.x(stage.index) + box * Ring::kBoxBytes + offset_x;
        if (schedule.cluster_n > 1) {
          copy_box_to(blocks, x, &map_x, column + box * kSm90BoxK, row, barrier, policy_x);
        } else {
          copy_box(x, &map_x, column + box * kSm90BoxK, row, barrier, policy_x);
        }
      }
      stage.advance();
    }
  }
}

}  // namespace flashint8::cuda
