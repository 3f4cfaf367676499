// What one warp of the prefill kernel holds and does: its queries, its output and softmax state in
// registers, the two products of a step, the merge of key groups, and the store.
#pragma once

#include <type_traits>

#include "../device/convert.cuh"
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

  // Calls multiply(mt, nt, a, b0, b1) for every product of s = Q K^T, for the kChunk keys at row
  // `key0` of the tile.
  template <typename Multiply>
  __device__ __forceinline__ void for_each_product(uint32_t k_tile, int key0, Multiply multiply) {
    const int lane = threadIdx.x % 32;
    const int lane_row = (lane / 16) * 8 + lane % 8;
    const int lane_chunk = (lane / 8) % 2;
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
          multiply(mt, 2 * pair, fragment[mt], b[0], b[1]);
          multiply(mt, 2 * pair + 1, fragment[mt], b[2], b[3]);
        }
      }
    }
  }

  __device__ __forceinline__ void scores(uint32_t k_tile, int key0,
                                         float (&s)[kMTiles][kNTiles][4]) {
#pragma unroll
    for (int mt = 0; mt < kMTiles; ++mt) {
#pragma unroll
      for (int nt = 0; nt < kNTiles; ++nt) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[mt][nt][i] = 0.0f;
      }
    }
    for_each_product(k_tile, key0,
                     [&](int mt, int nt, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
                       mma_m16n8k16<T>(s[mt][nt], a, b0, b1);
                     });
  }

  // The same with sums in fp16.
  __device__ __forceinline__ void scores_half(uint32_t k_tile, int key0,
                                              float (&s)[kMTiles][kNTiles][4]) {
    uint32_t sums[kMTiles][kNTiles][2] = {};
    for_each_product(k_tile, key0,
                     [&](int mt, int nt, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
                       mma_m16n8k16_half(sums[mt][nt], a, b0, b1);
                     });
#pragma unroll
    for (int mt = 0; mt < kMTiles; ++mt) {
#pragma unroll
      for (int nt = 0; nt < kNTiles; ++nt) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float2 pair = unpack2(sums[mt][nt][half], __half{});
          s[mt][nt][2 * half] = pair.x;
          s[mt][nt][2 * half + 1] = pair.y;
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
    if (std::is_same_v<T, __half> && params.fp16_accumulate) {
      scores_half(k_tile, key0, s);
    } else {
      scores(k_tile, key0, s);
    }
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

}  // namespace flashint8::cuda
