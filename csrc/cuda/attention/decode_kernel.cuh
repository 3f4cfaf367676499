// Fused attention for few queries a head: decoding, and short prompts that would not fill the chip
// with larger tiles (flash-decoding: Dao, Haziza, Massa and Sizov 2023), on sm_80 instructions.
//
// Work partition: a block owns 16 rows and one split of the keys they see. The rows are queries of
// one head or, where a head has few, of all `pack` query heads of one KV head (row r is query
// r % seq_len_q of head r / seq_len_q), so that one pass over the cache serves them all. The
// split's keys go round the block's warps, kKeys at a time; each warp has a ring of kStages
// key/value tiles of its own and waits for nobody. At the end the warps' softmax states are merged
// in shared memory, in the order of the warps; with several splits the merged state goes to the
// workspace and combine_kernel merges the splits, in their order: the same bits on every run.
//
// The bounds of a split come from the row's true length, read on the device, so that short content
// in a long cache still uses every split.
#pragma once

#include "../device/dependent_launch.cuh"
#include "../device/ldmatrix.cuh"
#include "../device/mma.cuh"
#include "decode_append.cuh"
#include "flashint8/attention.h"
#include "partial.cuh"
#include "softmax.cuh"
#include "tile.cuh"
#include "variants.h"

namespace flashint8::cuda {

template <typename T, int kHeadDim_, bool kVectorized_>
struct DecodeTraits {
  using Element = T;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr bool kVectorized = kVectorized_;
  static constexpr int kRows = kDecodeRows;
  static constexpr int kKeys = decode_keys(kHeadDim);  // keys of a tile
  static constexpr int kStages = kDecodeStages;
  static constexpr int kTileBytes = kKeys * kHeadDim * 2;
  static constexpr int kWarpBytes = decode_warp_bytes(kHeadDim);
  static constexpr int kNTiles = kKeys / 8;
  static constexpr int kDTiles = kHeadDim / 8;
  static constexpr int kKSteps = kHeadDim / 16;
  static constexpr int kMaxWarps = kDecodeMaxWarps;
  // The merge reuses the rings: rows of fp32, one word of padding against bank conflicts.
  static constexpr int kMergeStride = kHeadDim + 4;
  static_assert(kRows * kMergeStride * 4 <= kWarpBytes);
};

// The A operand of Q K^T, straight from global memory: rows past `num_rows` are zeros.
template <class Traits, typename PointerOfRow>
__device__ __forceinline__ void load_query_fragments(uint32_t (&q)[Traits::kKSteps][4],
                                                     PointerOfRow pointer_of_row, int num_rows,
                                                     int head_dim) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane / 4 + 8 * half;
    const bool valid = row < num_rows;
    const auto* pointer = reinterpret_cast<const unsigned short*>(pointer_of_row(valid ? row : 0));
#pragma unroll
    for (int step = 0; step < Traits::kKSteps; ++step) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const int column = 16 * step + 8 * part + 2 * (lane % 4);
        uint32_t word = 0;
        if (valid && column < head_dim) {
          if constexpr (Traits::kVectorized) {
            word = *reinterpret_cast<const uint32_t*>(pointer + column);
          } else {
            word = pointer[column] | (static_cast<uint32_t>(pointer[column + 1]) << 16);
          }
        }
        q[step][half + 2 * part] = word;
      }
    }
  }
}

// The keys that some row of the block sees, and this split's share of their tiles.
struct SplitRange {
  int key_begin, key_end;
  int tile_begin, tile_end;
};

template <class Traits>
__device__ __forceinline__ SplitRange split_range(const KeyBounds& bounds, int low_query,
                                                  int high_query, int split, int num_splits) {
  SplitRange range;
  range.key_begin = bounds.begin(low_query);
  range.key_end = bounds.end(high_query);
  const int tile0 = range.key_begin / Traits::kKeys;
  const int num_tiles = range.key_end > range.key_begin
                            ? (range.key_end + Traits::kKeys - 1) / Traits::kKeys - tile0
                            : 0;
  // The last splits have a tile more where they do not come out even: the last tile, with the
  // token of a decoding step, is always the last split's.
  const int share = num_tiles / num_splits;
  const int first_longer = num_splits - (num_tiles - share * num_splits);
  range.tile_begin = tile0 + share * split + max(0, split - first_longer);
  range.tile_end = range.tile_begin + share + (split >= first_longer);
  return range;
}

// Brings a tile's rows into L2. More than a warp's first tile takes memory's time from the kernel
// ahead.
template <class Traits, typename T>
__device__ __forceinline__ void prefetch_rows(const RowSource<T>& source, int row0, int lane) {
  constexpr int kLines = Traits::kHeadDim / 64;  // of 128 bytes
#pragma unroll
  for (int i = 0; i < Traits::kKeys * kLines; i += 32) {
    const int row = row0 + (i + lane) / kLines;
    const int column = (i + lane) % kLines * 64;
    if (row >= source.begin && row < source.end && column < source.head_dim) {
      prefetch_l2_line(source.base + row * source.stride + column);
    }
  }
}

template <class Traits>
__global__ void __launch_bounds__(32 * Traits::kMaxWarps, 1)
    decode_kernel(const __grid_constant__ DecodeArgs args) {
  using T = typename Traits::Element;
  using Layout = TileLayout<Traits::kHeadDim>;
  extern __shared__ __align__(1024) unsigned char shared[];
  const AttentionParams& params = args.params;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int num_warps = args.num_warps;  // from constant memory: no register is left to hold it
  const int seq_len_q = static_cast<int>(params.seq_len_q);
  const int head_dim = static_cast<int>(params.head_dim);

  // blockIdx.x: splits innermost, then packed heads and batch rows, then blocks of rows, last
  // first.
  const int split = blockIdx.x % args.num_splits;
  const int packs = static_cast<int>(params.num_heads) / args.pack;
  const int all_packs = packs * static_cast<int>(params.batch);
  const int rest = blockIdx.x / args.num_splits;
  const int m_block = args.num_m_blocks - 1 - rest / all_packs;
  const int64_t batch = rest % all_packs / packs;
  const int first_head = rest % all_packs % packs * args.pack;
  const int kv_head = first_head / static_cast<int>(params.num_heads / params.num_kv_heads);
  const int first_row = m_block * Traits::kRows;
  const int num_rows = min(Traits::kRows, args.pack * seq_len_q - first_row);
  // Without a division for a decoding step: these stand between the last key and the output.
  const auto head_of_row = [&](int row) {
    return first_head + (seq_len_q == 1 ? first_row + row : (first_row + row) / seq_len_q);
  };
  const auto query_of_row = [&](int row) {
    return seq_len_q == 1 ? 0 : (first_row + row) % seq_len_q;
  };

  const bool one_head = args.pack == 1;
  const int low_query = one_head ? first_row : 0;
  const int high_query = one_head ? first_row + num_rows - 1 : seq_len_q - 1;
  RowSource<T> keys{static_cast<const T*>(params.k) + batch * params.k_stride.batch +
                        kv_head * params.k_stride.head,
                    params.k_stride.seq, 0, 0, head_dim};
  RowSource<T> values{static_cast<const T*>(params.v) + batch * params.v_stride.batch +
                          kv_head * params.v_stride.head,
                      params.v_stride.seq, 0, 0, head_dim};

  // Constant for the grid, read where it is wanted.
  const auto appends = [&] { return Traits::kVectorized && args.append.k != nullptr; };
  const bool ready = appends() && params.cache_ready;
  if (!ready) {
    // The lengths are another kernel's to write until it has ended; what is read of them before,
    // past L1, only says which lines are likely to be wanted.
    const SplitRange likely = split_range<Traits>(
        key_bounds(params, row_bounds(params, batch, [](const int32_t* p) { return __ldcg(p); })),
        low_query, high_query, split, args.num_splits);
    keys.begin = values.begin = likely.key_begin;
    keys.end = values.end = likely.key_end;
    if (likely.tile_begin + warp < likely.tile_end) {
      prefetch_rows<Traits>(keys, (likely.tile_begin + warp) * Traits::kKeys, lane);
      prefetch_rows<Traits>(values, (likely.tile_begin + warp) * Traits::kKeys, lane);
    }
    wait_for_prerequisite();
    allow_dependent_launch();
  }

  const auto load_length = [&](const int32_t* p) { return ready ? __ldcg(p) : *p; };
  const KeyBounds bounds = key_bounds(params, row_bounds(params, batch, load_length));
  const auto [key_begin, key_end, tile_begin, tile_end] =
      split_range<Traits>(bounds, low_query, high_query, split, args.num_splits);
  keys.begin = values.begin = key_begin;
  keys.end = values.end = key_end;
  // A token that the cache has room for is its last key; it is not read from there.
  int position = 0, appended = -1;
  if (appends()) {
    position = load_length(params.kv_lengths + batch * params.kv_lengths_stride);
    if (position >= 0 && position < params.seq_len_kv) {
      appended = keys.end = values.end = position;
    }
  }
  const uint32_t ring = shared_address(shared) + warp * Traits::kWarpBytes;
  const auto load_slot = [&](int tile, int slot) {
    if (tile < tile_end) {
      const uint32_t k_tile = ring + slot * 2 * Traits::kTileBytes;
      load_tile<Traits::kHeadDim, Traits::kKeys, 32, Traits::kVectorized>(
          k_tile, keys, tile * Traits::kKeys, lane);
      load_tile<Traits::kHeadDim, Traits::kKeys, 32, Traits::kVectorized>(
          k_tile + Traits::kTileBytes, values, tile * Traits::kKeys, lane);
    }
    cp_async_commit();
  };
#pragma unroll
  for (int stage = 0; stage < Traits::kStages - 1; ++stage) {
    load_slot(tile_begin + warp + stage * num_warps, stage);
  }

  const uint32_t block_bounds =
      shared_address(shared) + num_warps * (Traits::kWarpBytes + Traits::kRows * 8);
  if (threadIdx.x == 0) {
    write_bounds(block_bounds, bounds.first, bounds.last, bounds.diagonal, bounds.window);
    write_bounds(block_bounds + 16, key_begin, key_end, bounds.begin(high_query),
                 bounds.end(low_query));
    if (appends()) store_shared_4(staged_row_address<Traits>(block_bounds + 32), appended);
  }
  __syncthreads();
  if (ready) {
    wait_for_prerequisite();
    allow_dependent_launch();
  }

  uint32_t q[Traits::kKSteps][4];
  load_query_fragments<Traits>(
      q,
      [&](int row) {
        return static_cast<const T*>(params.q) + batch * params.q_stride.batch +
               head_of_row(row) * params.q_stride.head + query_of_row(row) * params.q_stride.seq;
      },
      num_rows, head_dim);
  if (appends()) {
    if (appended >= 0 && split == args.num_splits - 1 &&
        warp == (tile_end - 1 - tile_begin) % num_warps) {
      stage_token<Traits>(args.append, batch, kv_head, position, first_row == 0, block_bounds + 32);
    }
    if (args.append.cos_sin != nullptr) rotate_query<Traits>(q, table_row(args.append, position));
  }
  float o[1][Traits::kDTiles][4];
#pragma unroll
  for (int dt = 0; dt < Traits::kDTiles; ++dt) {
#pragma unroll
    for (int i = 0; i < 4; ++i) o[0][dt][i] = 0.0f;
  }
  SoftmaxState<1> state;
  state.init();
  const float multiplier = logit_multiplier(params);

  int slot = 0;
  for (int tile = tile_begin + warp; tile < tile_end; tile += num_warps) {
    cp_async_wait<Traits::kStages - 2>();
    __syncwarp();
    const uint32_t k_tile = ring + slot * 2 * Traits::kTileBytes;
    const uint32_t v_tile = k_tile + Traits::kTileBytes;
    if (appends() && tile + 1 == tile_end) {
      insert_token<Traits>(block_bounds + 32, head_dim, tile * Traits::kKeys, k_tile, v_tile);
    }
    // The slot read last is the one to fill.
    load_slot(tile + (Traits::kStages - 1) * num_warps, slot == 0 ? Traits::kStages - 1 : slot - 1);
    slot = slot + 1 == Traits::kStages ? 0 : slot + 1;

    float s[1][Traits::kNTiles][4];
#pragma unroll
    for (int nt = 0; nt < Traits::kNTiles; ++nt) {
#pragma unroll
      for (int i = 0; i < 4; ++i) s[0][nt][i] = 0.0f;
    }
#pragma unroll
    for (int step = 0; step < Traits::kKSteps; ++step) {
#pragma unroll
      for (int pair = 0; pair < Traits::kNTiles / 2; ++pair) {
        uint32_t b[4];
        ldmatrix_x4(b, k_tile + Layout::offset(16 * pair + (lane / 16) * 8 + lane % 8,
                                               2 * step + (lane / 8) % 2));
        mma_m16n8k16<T>(s[0][2 * pair], q[step], b[0], b[1]);
        mma_m16n8k16<T>(s[0][2 * pair + 1], q[step], b[2], b[3]);
      }
    }
    if (needs_transform(params)) transform_scores(s, params);
    const int key = tile * Traits::kKeys;
    const WarpKeys seen = read_warp_keys(block_bounds + 16);
    if (key < seen.all_begin || key + Traits::kKeys > seen.all_end) {
      mask_scores(s, read_key_bounds(block_bounds), key, query_of_row);
    }
    state.update_max(s, multiplier, o);
    uint32_t p[1][Traits::kNTiles / 2][4];
#pragma unroll
    for (int nt = 0; nt < Traits::kNTiles; ++nt) {
      state.template exponentiate<T>(s, nt, multiplier, p);
    }
#pragma unroll
    for (int step = 0; step < Traits::kNTiles / 2; ++step) {
#pragma unroll
      for (int pair = 0; pair < Traits::kDTiles / 2; ++pair) {
        uint32_t b[4];
        ldmatrix_x4_trans(b, v_tile + Layout::offset(16 * step + lane % 16, 2 * pair + lane / 16));
        mma_m16n8k16<T>(o[0][2 * pair], p[0][step], b[0], b[1]);
        mma_m16n8k16<T>(o[0][2 * pair + 1], p[0][step], b[2], b[3]);
      }
    }
  }
  state.finish();

  // Merge the warps. Each leaves its outputs where its ring was, its states past all rings.
  cp_async_wait<0>();
  __syncthreads();
  auto* outputs = reinterpret_cast<float*>(shared + warp * Traits::kWarpBytes);
  auto* states = reinterpret_cast<float2*>(shared + num_warps * Traits::kWarpBytes);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane / 4 + 8 * half;
    if (row >= num_rows) break;
#pragma unroll
    for (int dt = 0; dt < Traits::kDTiles; ++dt) {
      *reinterpret_cast<float2*>(outputs + row * Traits::kMergeStride + 8 * dt + 2 * (lane % 4)) =
          make_float2(o[0][dt][2 * half], o[0][dt][2 * half + 1]);
    }
    if (lane % 4 == 0) {
      states[warp * Traits::kRows + row] =
          make_float2(state.row_max[0][half], state.row_sum[0][half]);
    }
  }
  __syncthreads();

  const PartialLayout partial{params.batch * params.num_heads * seq_len_q, args.num_splits,
                              Traits::kHeadDim};
  auto* workspace = static_cast<float*>(params.workspace);
  constexpr int kPairs = Traits::kHeadDim / 2;
  for (int i = threadIdx.x; i < num_rows * kPairs; i += blockDim.x) {
    const int row = i / kPairs;
    const int column = 2 * (i % kPairs);
    const MergedPair merged = merge_pairs<Traits::kMaxWarps>(
        num_warps, [&](int w) { return states[w * Traits::kRows + row]; },
        [&](int w) {
          return *reinterpret_cast<const float2*>(shared + w * Traits::kWarpBytes +
                                                  (row * Traits::kMergeStride + column) * 4);
        });
    const int head = head_of_row(row);
    const int query = query_of_row(row);
    const int64_t global_row = (batch * params.num_heads + head) * seq_len_q + query;
    if (args.num_splits > 1) {
      if (column == 0) {
        *reinterpret_cast<float2*>(workspace + partial.state(split, global_row)) =
            make_float2(merged.top, merged.sum);
      }
      *reinterpret_cast<float2*>(workspace + partial.output(split, global_row) + column) = merged.x;
      continue;
    }
    if (column < head_dim) {
      const float inverse = inverse_sum(merged.sum);
      T* out = static_cast<T*>(params.out) + batch * params.out_stride.batch +
               head * params.out_stride.head + query * params.out_stride.seq + column;
      *reinterpret_cast<uint32_t*>(out) = pack2<T>(merged.x.x * inverse, merged.x.y * inverse);
    }
    if (column == 0 && params.lse != nullptr) {
      params.lse[global_row] = log_sum_exp(merged.top, merged.sum);
    }
  }
}

}  // namespace flashint8::cuda
