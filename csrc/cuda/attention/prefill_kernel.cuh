// Fused attention for many queries (FlashAttention-2's loop order: Dao 2023), on sm_80
// instructions.
//
// Work partition: a block owns kBlockM queries of one head of one batch row and walks the keys that
// they see, kBlockN at a time, through a ring of kStages key/value tiles in shared memory. A warp
// owns kRowsPerWarp of the queries and takes kChunk keys at a step: S = Q K^T in registers, online
// softmax, O += P V, P never leaving registers. No warp waits for another but at the ring. With
// kKeyGroups > 1, the chunks of a tile go round as many groups of warps, whose states are merged at
// the end: short prompts, whose blocks do not fill the chip, finish sooner. Tiles past the
// diagonal, outside the window or outside [kv_start, kv_lengths) are not visited by the block, and
// chunks of a visited tile that a warp's rows do not see not by the warp.
//
// Bank conflicts: none at ldmatrix nor at the output's staging, by TileLayout's swizzle.
#pragma once

#include "../device/dependent_launch.cuh"
#include "flashint8/attention.h"
#include "prefill_warp.cuh"
#include "prefill_work.cuh"
#include "softmax.cuh"
#include "tile.cuh"

namespace flashint8::cuda {

template <typename T, int kIndex>
__global__ void __launch_bounds__(kPrefillVariants[kIndex].threads(),
                                  kPrefillVariants[kIndex].min_blocks)
    prefill_kernel(const __grid_constant__ PrefillArgs args) {
  using Traits = PrefillTraits<T, kIndex>;
  extern __shared__ __align__(1024) unsigned char shared[];
  const AttentionParams& params = args.params;
  const BlockWork work = block_work(args, static_cast<int>(blockIdx.x));
  const int thread = threadIdx.x;
  const int row_warp = thread / 32 % Traits::kRowWarps;
  const int key_group = Traits::kKeyGroups > 1 ? thread / 32 / Traits::kRowWarps : 0;
  const int seq_len_q = static_cast<int>(params.seq_len_q);
  const int head_dim = static_cast<int>(params.head_dim);
  const int block_query = work.m_block * Traits::kBlockM;
  const int kv_head = work.head / static_cast<int>(params.num_heads / params.num_kv_heads);

  wait_for_prerequisite();
  if (args.early_trigger) allow_dependent_launch();
  const KeyBounds bounds = key_bounds(params, row_bounds(params, work.batch));
  // The keys this block's queries see lie in [key_begin, key_end).
  const int last_query = min(block_query + Traits::kBlockM, seq_len_q) - 1;
  const int key_begin = bounds.begin(block_query);
  const int key_end = bounds.end(last_query);
  const int tile_begin = key_begin / Traits::kBlockN;
  const int tile_end =
      key_end > key_begin ? (key_end + Traits::kBlockN - 1) / Traits::kBlockN : tile_begin;

  const uint32_t q_tile = shared_address(shared);
  const uint32_t kv_tiles = q_tile + Traits::kQueryBytes;
  const RowSource<T> keys{static_cast<const T*>(params.k) + work.batch * params.k_stride.batch +
                              kv_head * params.k_stride.head,
                          params.k_stride.seq, key_begin, key_end, head_dim};
  const RowSource<T> values{static_cast<const T*>(params.v) + work.batch * params.v_stride.batch +
                                kv_head * params.v_stride.head,
                            params.v_stride.seq, key_begin, key_end, head_dim};
  const auto load_stage = [&](int tile) {
    if (tile < tile_end) {
      const uint32_t k_tile = kv_tiles + tile % Traits::kStages * 2 * Traits::kTileBytes;
      load_tile<Traits::kHeadDim, Traits::kBlockN, Traits::kThreads, true>(
          k_tile, keys, tile * Traits::kBlockN, thread);
      load_tile<Traits::kHeadDim, Traits::kBlockN, Traits::kThreads, true>(
          k_tile + Traits::kTileBytes, values, tile * Traits::kBlockN, thread);
    }
    cp_async_commit();  // also an empty group: waiting counts groups
  };

  const RowSource<T> queries{static_cast<const T*>(params.q) + work.batch * params.q_stride.batch +
                                 work.head * params.q_stride.head,
                             params.q_stride.seq, 0, seq_len_q, head_dim};
  load_tile<Traits::kHeadDim, Traits::kBlockM, Traits::kThreads, true>(q_tile, queries, block_query,
                                                                       thread);
#pragma unroll
  for (int stage = 0; stage < Traits::kStages - 1; ++stage) load_stage(tile_begin + stage);

  PrefillWarp<Traits> state;
  const int first_query = block_query + row_warp * Traits::kRowsPerWarp;
  state.q_tile = q_tile + row_warp * Traits::kRowsPerWarp * Traits::kHeadDim * 2;
  state.init();
  const uint32_t block_bounds = q_tile + Traits::kBoundsOffset;
  const uint32_t warp_bounds = block_bounds + 16 * (1 + row_warp);
  if (thread == 0) {
    write_bounds(block_bounds, bounds.first, bounds.last, bounds.diagonal, bounds.window);
  }
  if (key_group == 0 && thread % 32 == 0) {
    const int warp_last = min(first_query + Traits::kRowsPerWarp, seq_len_q) - 1;
    write_bounds(warp_bounds, bounds.begin(first_query),
                 first_query < seq_len_q ? bounds.end(warp_last) : 0,
                 bounds.begin(first_query + Traits::kRowsPerWarp - 1), bounds.end(first_query));
  }
  const float multiplier = logit_multiplier(params);
  cp_async_wait<Traits::kStages - 2>();
  __syncthreads();  // the queries and the bounds are there
  if (std::is_same_v<T, __half> && params.fp16_accumulate) {
    scale_half_tile<Traits::kThreads>(q_tile, Traits::kQueryBytes, args.query_factor, thread);
    __syncthreads();
  }
  state.load_queries();

  for (int tile = tile_begin; tile < tile_end; ++tile) {
    cp_async_wait<Traits::kStages - 2>();
    __syncthreads();  // the tile is there, for all; and nobody reads the one before any more
    load_stage(tile + Traits::kStages - 1);
    const uint32_t k_tile = kv_tiles + tile % Traits::kStages * 2 * Traits::kTileBytes;
#pragma unroll 1
    for (int chunk = 0; chunk < Traits::kBlockN / Traits::kChunk; chunk += Traits::kKeyGroups) {
      const int key0 = (chunk + key_group) * Traits::kChunk;
      const int key = tile * Traits::kBlockN + key0;
      const WarpKeys seen = read_warp_keys(warp_bounds);
      if (key >= seen.some_end || key + Traits::kChunk <= seen.some_begin) continue;
      const bool masked = key < seen.all_begin || key + Traits::kChunk > seen.all_end;
      state.step(k_tile, k_tile + Traits::kTileBytes, key0, key, block_bounds, first_query, masked,
                 params, multiplier);
    }
  }
  if constexpr (Traits::kKeyGroups > 1) {
    cp_async_wait<0>();
    __syncthreads();  // nobody reads the ring any more
    unsigned char* ring = shared + Traits::kQueryBytes;
    const auto slot = [&](int group) {
      return ring + ((group - 1) * Traits::kRowWarps + row_warp) * Traits::kMergeWarpBytes;
    };
    if (key_group > 0) state.leave(slot(key_group));
    __syncthreads();
    if (key_group > 0) return;
#pragma unroll
    for (int group = 1; group < Traits::kKeyGroups; ++group) state.merge(slot(group));
  }
  allow_dependent_launch();
  state.store(params, work.batch, work.head, first_query);
}

}  // namespace flashint8::cuda
