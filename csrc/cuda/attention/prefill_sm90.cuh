// Fused attention for many queries on Hopper, with its warpgroup products (wgmma) and copy engine
// (Shah et al. 2024, FlashAttention-3).
//
// Work: a block takes kBlockM queries of one head of one batch row and walks the tiles of keys that
// they see, from the last to the first. One warp asks the copy engine for queries, keys and values,
// as far ahead as the ring holds, on into the block's next piece of work. The other warpgroups
// multiply, 64 queries each: S = Q K^T with both operands in shared memory, online softmax in
// registers, O += P V with P in registers.
//
// Time: tensor cores idle while a warpgroup softens scores, unless another one multiplies then. So
// warpgroups take turns: who has the turn queues its next scores and the P V of the tile before,
// passes the turn on, and softens as soon as the scores are there.
//
// Values outside of what any query sees are no operand (0 * NaN): the warp that brings a tile on
// that edge writes zeros over them before it hands the tile on. Keys there give masked scores.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "../device/dependent_launch.cuh"
#include "../device/shared_barrier.cuh"
#include "../device/tensor_copy.cuh"
#include "../device/wgmma.cuh"
#include "prefill_sm90_group.cuh"

namespace flashint8::cuda {

struct Sm90PrefillMaps {
  CUtensorMap q, k, v;
};

// The warp that brings the tiles.
template <class Traits>
struct Sm90Producer {
  const Sm90Shared<Traits> shared;
  const Sm90PrefillMaps& maps;
  const int lane;
  RingPlace<Traits::kStages> place;
  uint32_t q_parity = 0;
  uint32_t edge_parity = 0;

  // Rows from `row` on of a head, to boxes of kRows rows.
  template <int kRows>
  __device__ __forceinline__ void bring(uint32_t tile, const CUtensorMap* map, int row, int head,
                                        int batch, uint32_t barrier) const {
    barrier_expect(barrier, Traits::kBoxes * kRows * 128);
#pragma unroll
    for (int box = 0; box < Traits::kBoxes; ++box) {
      copy_box(tile + box * kRows * 128, map, 64 * box, row, head, batch, barrier);
    }
  }

  // Zeros to the values of the tile from `key` on that lie outside [begin, end).
  __device__ __forceinline__ void clear_outside(uint32_t tile, int key, int begin, int end) const {
#pragma unroll 1
    for (int row = lane / 8; row < Traits::kBlockN; row += 4) {
      if (key + row >= begin && key + row < end) continue;
#pragma unroll
      for (int box = 0; box < Traits::kBoxes; ++box) {
        store_shared_16(tile + (box * Traits::kBlockN + row) * 128 + lane % 8 * 16,
                        make_uint4(0, 0, 0, 0));
      }
    }
    shared_writes_fence();
    __syncwarp();
  }

  __device__ __forceinline__ void run(const AttentionParams& params, const Sm90Work<Traits>& work) {
    if (work.tile_begin >= work.tile_end) return;
    const int group = static_cast<int>(params.num_heads / params.num_kv_heads);
    const int head = work.block.head / group, batch = static_cast<int>(work.block.batch);
    const int seen_begin = work.bounds.begin(0), seen_end = work.bounds.end(work.seq_len_q - 1);
    const int seq_len_kv = static_cast<int>(params.seq_len_kv);
    barrier_wait(shared.queries_empty(), q_parity ^ 1);
    q_parity ^= 1;
    if (lane == 0) {
      bring<Traits::kBlockM>(shared.queries(), &maps.q, work.query, work.block.head, batch,
                             shared.queries_full());
    }
#pragma unroll 1
    for (int tile = work.tile_end - 1; tile >= work.tile_begin; --tile, place.advance()) {
      const int key = tile * Traits::kBlockN;
      barrier_wait(shared.keys_empty(place.index), place.parity ^ 1);
      if (lane == 0) {
        bring<Traits::kBlockN>(shared.keys(place.index), &maps.k, key, head, batch,
                               shared.keys_full(place.index));
      }
      const bool edge = key < seen_begin || min(key + Traits::kBlockN, seq_len_kv) > seen_end;
      const uint32_t full = shared.values_full(place.index);
      barrier_wait(shared.values_empty(place.index), place.parity ^ 1);
      if (lane == 0) {
        bring<Traits::kBlockN>(shared.values(place.index), &maps.v, key, head, batch,
                               edge ? shared.edge_full() : full);
      }
      if (edge) {
        barrier_wait(shared.edge_full(), edge_parity);
        edge_parity ^= 1;
        clear_outside(shared.values(place.index), key, seen_begin, seen_end);
        if (lane == 0) barrier_arrive(full);
      }
    }
  }
};

template <typename T, int kTile>
__global__ void __launch_bounds__(kSm90PrefillTiles[kTile].threads(), 1)
    prefill_sm90_kernel(const __grid_constant__ PrefillArgs args,
                        const __grid_constant__ Sm90PrefillMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Traits = Sm90Traits<T, kTile>;
  extern __shared__ __align__(1024) unsigned char memory[];
  const Sm90Shared<Traits> shared{shared_address(memory)};
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be uniform

  if (args.early_trigger) allow_dependent_launch();
  if (threadIdx.x == 0) {
    constexpr int kReaders = 4 * Traits::kGroups;  // warps
    barrier_init(shared.queries_full(), 1);
    barrier_init(shared.queries_empty(), kReaders);
    barrier_init(shared.edge_full(), 1);
    for (int stage = 0; stage < Traits::kStages; ++stage) {
      barrier_init(shared.keys_full(stage), 1);
      barrier_init(shared.values_full(stage), 1);
      barrier_init(shared.keys_empty(stage), kReaders);
      barrier_init(shared.values_empty(stage), kReaders);
    }
    barrier_init_fence();
    prefetch_map(&maps.q);
    prefetch_map(&maps.k);
    prefetch_map(&maps.v);
  }
  __syncthreads();
  wait_for_prerequisite();

  if (warp < 4) {
    give_back_registers<Traits::kShape.producer_registers>();
    if (warp == 0) {
      Sm90Producer<Traits> producer{shared, maps, static_cast<int>(threadIdx.x % 32), {}};
      for_each_work(
          args, [&](int index, bool) { producer.run(args.params, Sm90Work<Traits>(args, index)); });
    }
  } else {
    take_registers<Traits::kShape.registers>();
    Sm90Group<Traits> state(shared, warp - 4);
    uint32_t q_parity = 0;
    if (warp / 4 == Traits::kGroups) state.end_turn();  // the first group begins
    for_each_work(args, [&](int index, bool last) {
      const Sm90Work<Traits> work(args, index);
      state.attend(args.params, work, q_parity);
      if (work.tile_begin < work.tile_end) q_parity ^= 1;
      if (last) allow_dependent_launch();
      state.store(args.params, work);
    });
  }
#endif
}

}  // namespace flashint8::cuda
