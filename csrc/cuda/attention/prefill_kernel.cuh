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

#include <type_traits>

#include "../device/ldmatrix.cuh"
#include "../device/mma.cuh"
#include "flashint8/attention.h"
#include "softmax.cuh"
#include "tile.cuh"
#include "variants.h"

namespace flashint8::cuda {

// kIndex: row of kPrefillVariants.
template <typename T, int kIndex>
struct PrefillTraits {
  using Element = T;
  static constexpr PrefillVariant kVariant = kPrefillVariants[kIndex];
  static constexpr int kHeadDim = kVariant.head_dim;
  static constexpr int kBlockM = kVariant.block_m;
  static constexpr int kBlockN = kVariant.block_n;
  static constexpr int kChunk = kVariant.chunk;
  static constexpr int kStages = kVariant.stages;
  static constexpr int kKeyGroups = kVariant.key_groups;

  static constexpr int kThreads = kVariant.threads();
  static constexpr int kRowsPerWarp = kVariant.rows_per_warp();
  static constexpr int kTileBytes = kVariant.tile_bytes();
  static constexpr int kQueryBytes = kVariant.query_bytes();
  static constexpr int kBoundsOffset = kVariant.bounds_offset();
  static constexpr int kMTiles = kRowsPerWarp / 16;
  static constexpr int kNTiles = kChunk / 8;
  static constexpr int kDTiles = kHeadDim / 8;
  static constexpr int kKSteps = kHeadDim / 16;
  // Queries stay in registers where that leaves room for the output.
  static constexpr bool kQueriesInRegisters = kMTiles * kHeadDim <= 128;

  static constexpr int kRowWarps = kVariant.num_warps / kKeyGroups;
  // The merge of key groups reuses the ring.
  static constexpr int kMergeWarpBytes = 32 * kMTiles * (kDTiles * 16 + 16);

  static_assert(kRowsPerWarp % 16 == 0 && kChunk % 16 == 0);
  static_assert(kBlockN % (kChunk * kKeyGroups) == 0 && kStages >= 2);
  static_assert(kRowWarps * (kKeyGroups - 1) * kMergeWarpBytes <= 2 * kStages * kTileBytes);
};

struct PrefillArgs {
  AttentionParams params;
  int num_m_blocks;
  int section;  // heads (over all batch rows) whose blocks run together; see block_work
};

// Which queries of which head a block owns. Heads are taken in sections whose keys and values fit
// in L2 together; within a section the last query block of every head comes first, since under a
// causal mask it has the most keys.
struct BlockWork {
  int m_block;
  int head;
  int64_t batch;
};

__device__ __forceinline__ BlockWork block_work(const PrefillArgs& args) {
  const int heads = static_cast<int>(args.params.num_heads);
  const int all_heads = heads * static_cast<int>(args.params.batch);
  const int per_section = args.section * args.num_m_blocks;
  const int section = blockIdx.x / per_section;
  const int rest = blockIdx.x - section * per_section;
  const int section_heads = min(args.section, all_heads - section * args.section);
  const int rank = rest / section_heads;
  const int head = section * args.section + rest - rank * section_heads;
  return {args.num_m_blocks - 1 - rank, head % heads, head / heads};
}

// One warp's registers and its two products.
template <class Traits>
struct PrefillWarp {
  using T = typename Traits::Element;
  using Layout = TileLayout<Traits::kHeadDim>;
  static constexpr int kMTiles = Traits::kMTiles;
  static constexpr int kNTiles = Traits::kNTiles;
  static constexpr int kKSteps = Traits::kKSteps;
  static constexpr int kRegisterSteps = Traits::kQueriesInRegisters ? kKSteps : 1;

  float o[kMTiles][Traits::kDTiles][4];
  uint32_t q[kMTiles][kRegisterSteps][4];
  SoftmaxState<kMTiles> state;
  uint32_t q_tile;  // this warp's rows of the query tile

  __device__ __forceinline__ void load_query_step(int step, uint32_t (&fragment)[kMTiles][4]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int mt = 0; mt < kMTiles; ++mt) {
      ldmatrix_x4(fragment[mt], q_tile + Layout::offset(16 * mt + lane % 16, 2 * step + lane / 16));
    }
  }

  __device__ __forceinline__ void init() {
    state.init();
#pragma unroll
    for (int mt = 0; mt < kMTiles; ++mt) {
#pragma unroll
      for (int dt = 0; dt < Traits::kDTiles; ++dt) {
#pragma unroll
        for (int i = 0; i < 4; ++i) o[mt][dt][i] = 0.0f;
      }
    }
  }

  __device__ __forceinline__ void load_queries() {
    if constexpr (Traits::kQueriesInRegisters) {
#pragma unroll
      for (int step = 0; step < kKSteps; ++step) {
        uint32_t fragment[kMTiles][4];
        load_query_step(step, fragment);
#pragma unroll
        for (int mt = 0; mt < kMTiles; ++mt) {
#pragma unroll
          for (int i = 0; i < 4; ++i) q[mt][step][i] = fragment[mt][i];
        }
      }
    }
  }

  // s = Q K^T for the kChunk keys at row `key0` of the tile.
  __device__ __forceinline__ void scores(uint32_t k_tile, int key0,
                                         float (&s)[kMTiles][kNTiles][4]) {
    const int lane = threadIdx.x % 32;
    const int lane_row = (lane / 16) * 8 + lane % 8;
    const int lane_chunk = (lane / 8) % 2;
#pragma unroll
    for (int mt = 0; mt < kMTiles; ++mt) {
#pragma unroll
      for (int nt = 0; nt < kNTiles; ++nt) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[mt][nt][i] = 0.0f;
      }
    }
#pragma unroll
    for (int step = 0; step < kKSteps; ++step) {
      uint32_t fragment[kMTiles][4];
      if constexpr (Traits::kQueriesInRegisters) {
#pragma unroll
        for (int mt = 0; mt < kMTiles; ++mt) {
#pragma unroll
          for (int i = 0; i < 4; ++i) fragment[mt][i] = q[mt][step][i];
        }
      } else {
        load_query_step(step, fragment);
      }
#pragma unroll
      for (int pair = 0; pair < kNTiles / 2; ++pair) {
        uint32_t b[4];
        ldmatrix_x4(b, k_tile + Layout::offset(key0 + 16 * pair + lane_row, 2 * step + lane_chunk));
#pragma unroll
        for (int mt = 0; mt < kMTiles; ++mt) {
          mma_m16n8k16<T>(s[mt][2 * pair], fragment[mt], b[0], b[1]);
          mma_m16n8k16<T>(s[mt][2 * pair + 1], fragment[mt], b[2], b[3]);
        }
      }
    }
  }

  // o += P V for the kChunk keys at row `key0` of the tile.
  __device__ __forceinline__ void accumulate(uint32_t v_tile, int key0,
                                             const uint32_t (&p)[kMTiles][kNTiles / 2][4]) {
    const int lane = threadIdx.x % 32;
    const int lane_row = lane % 16;
    const int lane_chunk = lane / 16;
#pragma unroll
    for (int step = 0; step < kNTiles / 2; ++step) {
#pragma unroll
      for (int pair = 0; pair < Traits::kDTiles / 2; ++pair) {
        uint32_t b[4];
        ldmatrix_x4_trans(
            b, v_tile + Layout::offset(key0 + 16 * step + lane_row, 2 * pair + lane_chunk));
#pragma unroll
        for (int mt = 0; mt < kMTiles; ++mt) {
          mma_m16n8k16<T>(o[mt][2 * pair], p[mt][step], b[0], b[1]);
          mma_m16n8k16<T>(o[mt][2 * pair + 1], p[mt][step], b[2], b[3]);
        }
      }
    }
  }

  // One step of the online softmax, over the kChunk keys from `key` on, at row `key0` of the tiles.
  __device__ __forceinline__ void step(uint32_t k_tile, uint32_t v_tile, int key0, int key,
                                       uint32_t bounds_address, int first_query, bool masked,
                                       const AttentionParams& params, float multiplier) {
    float s[kMTiles][kNTiles][4];
    scores(k_tile, key0, s);
    if (needs_transform(params)) transform_scores(s, params);
    if (masked) {
      mask_scores(s, read_key_bounds(bounds_address), key,
                  [&](int row) { return first_query + row; });
    }
    state.update_max(s, multiplier, o);
    uint32_t p[kMTiles][kNTiles / 2][4];
#pragma unroll
    for (int nt = 0; nt < kNTiles; ++nt) {
      state.template exponentiate<T>(s, nt, multiplier, p);
    }
    accumulate(v_tile, key0, p);
  }

  // The state, lane by lane, to `address` in shared memory, and merged from there: the same lane of
  // another key group holds the same rows and columns.
  __device__ __forceinline__ void leave(unsigned char* address) const {
    auto* words = reinterpret_cast<float4*>(address) + threadIdx.x % 32;
#pragma unroll
    for (int mt = 0; mt < kMTiles; ++mt) {
      *words = make_float4(state.row_max[mt][0], state.row_max[mt][1], state.row_sum[mt][0],
                           state.row_sum[mt][1]);
      words += 32;
#pragma unroll
      for (int dt = 0; dt < Traits::kDTiles; ++dt, words += 32) {
        *words = make_float4(o[mt][dt][0], o[mt][dt][1], o[mt][dt][2], o[mt][dt][3]);
      }
    }
  }

  __device__ __forceinline__ void merge(const unsigned char* address) {
    const auto* words = reinterpret_cast<const float4*>(address) + threadIdx.x % 32;
#pragma unroll
    for (int mt = 0; mt < kMTiles; ++mt) {
      const float4 other = *words;
      words += 32;
      float mine[2], theirs[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float other_max = half == 0 ? other.x : other.y;
        const float other_sum = half == 0 ? other.z : other.w;
        const float top = fmaxf(state.row_max[mt][half], other_max);
        mine[half] = exp2_approx(state.row_max[mt][half] - top);
        theirs[half] = exp2_approx(other_max - top);
        state.row_max[mt][half] = top;
        state.row_sum[mt][half] = mine[half] * state.row_sum[mt][half] + theirs[half] * other_sum;
      }
#pragma unroll
      for (int dt = 0; dt < Traits::kDTiles; ++dt, words += 32) {
        const float4 x = *words;
        o[mt][dt][0] = mine[0] * o[mt][dt][0] + theirs[0] * x.x;
        o[mt][dt][1] = mine[0] * o[mt][dt][1] + theirs[0] * x.y;
        o[mt][dt][2] = mine[1] * o[mt][dt][2] + theirs[1] * x.z;
        o[mt][dt][3] = mine[1] * o[mt][dt][3] + theirs[1] * x.w;
      }
    }
  }

  // Normalises, and writes the rows below `seq_len_q` and the columns below head_dim.
  __device__ __forceinline__ void store(const AttentionParams& params, int64_t batch, int head,
                                        int first_query) {
    const int lane = threadIdx.x % 32;
    const int seq_len_q = static_cast<int>(params.seq_len_q);
    state.finish();
    // Through this warp's own rows of the query tile, so that global writes are 16 bytes a lane.
    __syncwarp();
#pragma unroll
    for (int mt = 0; mt < kMTiles; ++mt) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float sum = state.row_sum[mt][half];
        const float inverse = inverse_sum(sum);
        const int row = 16 * mt + 8 * half + lane / 4;
#pragma unroll
        for (int dt = 0; dt < Traits::kDTiles; ++dt) {
          const uint32_t value =
              pack2<T>(o[mt][dt][2 * half] * inverse, o[mt][dt][2 * half + 1] * inverse);
          store_shared_4(q_tile + Layout::offset(row, dt) + 4 * (lane % 4), value);
        }
        const int query = first_query + row;
        if (params.lse != nullptr && lane % 4 == 0 && query < seq_len_q) {
          params.lse[(batch * params.num_heads + head) * params.seq_len_q + query] =
              log_sum_exp(state.row_max[mt][half], sum);
        }
      }
    }
    __syncwarp();
    T* out = static_cast<T*>(params.out) + batch * params.out_stride.batch +
             head * params.out_stride.head;
    constexpr int kLanesPerRow = Layout::kChunks < 32 ? Layout::kChunks : 32;
    constexpr int kRowsPerPass = 32 / kLanesPerRow;
    const int chunk = lane % kLanesPerRow;
#pragma unroll 4
    for (int row = lane / kLanesPerRow; row < Traits::kRowsPerWarp; row += kRowsPerPass) {
      const int query = first_query + row;
      if (query >= seq_len_q || chunk * 8 >= params.head_dim || lane >= kLanesPerRow * kRowsPerPass)
        continue;
      const uint4 value = load_shared_16(q_tile + Layout::offset(row, chunk));
      // The output is the op's own: dense, so that every row is 16-byte aligned.
      *reinterpret_cast<uint4*>(out + query * params.out_stride.seq + chunk * 8) = value;
    }
  }
};

template <typename T, int kIndex>
__global__ void __launch_bounds__(kPrefillVariants[kIndex].threads(),
                                  kPrefillVariants[kIndex].min_blocks)
    prefill_kernel(const __grid_constant__ PrefillArgs args) {
  using Traits = PrefillTraits<T, kIndex>;
  extern __shared__ __align__(1024) unsigned char shared[];
  const AttentionParams& params = args.params;
  const BlockWork work = block_work(args);
  const int thread = threadIdx.x;
  const int row_warp = thread / 32 % Traits::kRowWarps;
  const int key_group = Traits::kKeyGroups > 1 ? thread / 32 / Traits::kRowWarps : 0;
  const int seq_len_q = static_cast<int>(params.seq_len_q);
  const int head_dim = static_cast<int>(params.head_dim);
  const int block_query = work.m_block * Traits::kBlockM;
  const int kv_head = work.head / static_cast<int>(params.num_heads / params.num_kv_heads);

  const RowBounds row = row_bounds(params, work.batch);
  const KeyBounds bounds{static_cast<int>(row.first), static_cast<int>(row.last),
                         static_cast<int>(row.diagonal), static_cast<int>(params.window)};
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
  state.store(params, work.batch, work.head, first_query);
}

}  // namespace flashint8::cuda
