// What a warpgroup of the Hopper prefill kernel does with its 64 queries: the two products, the
// softmax between them, and the store.
//
// Layout: S and O are wgmma accumulators, whose rows and columns a warp's lanes hold as those of
// mma.sync (softmax.cuh), warp w of the group rows 16w .. 16w + 15; as there, S turned to 16 bits
// is the A operand of P V.
#pragma once

#include "../device/convert.cuh"
#include "../device/shared_barrier.cuh"
#include "../device/wgmma_shared.cuh"
#include "flashint8/attention.h"
#include "prefill_work.cuh"
#include "softmax.cuh"
#include "tile.cuh"
#include "variants.h"

namespace flashint8::cuda {

// kTile: row of kSm90PrefillTiles.
template <typename T, int kTile>
struct Sm90Traits {
  using Element = T;
  static constexpr Sm90PrefillTile kShape = kSm90PrefillTiles[kTile];
  static constexpr int kHeadDim = kShape.head_dim;
  static constexpr int kBlockM = kShape.block_m;
  static constexpr int kBlockN = kShape.block_n;
  static constexpr int kStages = kShape.stages;
  static constexpr int kGroups = kShape.groups();
  static constexpr int kTileBytes = kShape.tile_bytes();
  static constexpr int kQueryBytes = kShape.query_bytes();
  static constexpr int kBoxes = kHeadDim / 64;  // of 64 columns
  static constexpr int kGroupRows = 64;
  static constexpr int kBarriersOffset = kShape.barriers_offset();

  static_assert(kHeadDim % 64 == 0 && kBlockM % kGroupRows == 0);
  static_assert(kBlockN % 16 == 0 && kBlockN <= 256 && kTileBytes % 1024 == 0);
};

// Where a block's shared memory has what.
template <class Traits>
struct Sm90Shared {
  uint32_t base;

  __device__ __forceinline__ uint32_t queries() const { return base; }
  __device__ __forceinline__ uint32_t output() const { return base + Traits::kQueryBytes; }
  __device__ __forceinline__ uint32_t keys(int stage) const {
    return base + 2 * Traits::kQueryBytes + stage * Traits::kTileBytes;
  }
  __device__ __forceinline__ uint32_t values(int stage) const {
    return keys(Traits::kStages + stage);
  }
  // Barriers.
  __device__ __forceinline__ uint32_t queries_full() const { return barrier(0); }
  __device__ __forceinline__ uint32_t queries_empty() const { return barrier(1); }
  __device__ __forceinline__ uint32_t edge_full() const { return barrier(2); }
  __device__ __forceinline__ uint32_t keys_full(int stage) const { return barrier(3 + stage); }
  __device__ __forceinline__ uint32_t values_full(int stage) const {
    return barrier(3 + Traits::kStages + stage);
  }
  __device__ __forceinline__ uint32_t keys_empty(int stage) const {
    return barrier(3 + 2 * Traits::kStages + stage);
  }
  __device__ __forceinline__ uint32_t values_empty(int stage) const {
    return barrier(3 + 3 * Traits::kStages + stage);
  }

 private:
  __device__ __forceinline__ uint32_t barrier(int i) const {
    return base + Traits::kBarriersOffset + 8 * i;
  }
};

// One block's share of the problem: the queries from `query` on of a head, and the tiles of keys
// that some of them see. Producer and warpgroups compute it alike.
template <class Traits>
struct Sm90Work {
  BlockWork block;
  KeyBounds bounds;
  int query;
  int seq_len_q;
  int tile_begin;
  int tile_end;

  __device__ __forceinline__ Sm90Work(const PrefillArgs& args, int index)
      : block(block_work(args, index)),
        bounds(key_bounds(args.params, row_bounds(args.params, block.batch))),
        query(block.m_block * Traits::kBlockM),
        seq_len_q(static_cast<int>(args.params.seq_len_q)) {
    tiles_of(query, Traits::kBlockM, &tile_begin, &tile_end);
  }

  // The tiles that rows first .. first + count - 1 see; where there are none, begin = end.
  __device__ __forceinline__ void tiles_of(int first, int count, int* begin, int* end) const {
    const int key_begin = bounds.begin(first);
    const int key_end = bounds.end(min(first + count, seq_len_q) - 1);
    *begin = key_begin / Traits::kBlockN;
    *end = first < seq_len_q && key_end > key_begin
               ? (key_end + Traits::kBlockN - 1) / Traits::kBlockN
               : *begin;
  }
};

// Calls fn for every piece of work of this block, telling the last: one where there are as many
// blocks as pieces. Fewer blocks deal out each section in rounds, forwards and backwards in turn,
// so that shares weigh alike: pieces of a section become lighter evenly.
template <typename Function>
__device__ __forceinline__ void for_each_work(const PrefillArgs& args, Function fn) {
  const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
  const int count = args.num_m_blocks * static_cast<int>(args.params.num_heads) *
                    static_cast<int>(args.params.batch);
  const int in_section = blocks < count ? args.section * args.num_m_blocks : count;
  bool reverse = false;
#pragma unroll 1
  for (int begin = 0; begin < count; begin += in_section) {
    const int end = min(begin + in_section, count);
#pragma unroll 1
    for (int round = begin; round < end; round += blocks) {
      const int index = round + (reverse ? blocks - 1 - block : block);
      reverse = !reverse;
      if (index < end) fn(index, end == count && round + blocks >= end);
    }
  }
}

template <class Traits>
struct Sm90Group {
  using T = typename Traits::Element;
  using Layout = TileLayout<Traits::kHeadDim>;
  static constexpr int kBlockN = Traits::kBlockN;
  static constexpr int kNTiles = kBlockN / 8;
  static constexpr int kDTiles = Traits::kHeadDim / 8;
  using Scores = float[kNTiles * 4];
  using Outputs = float[kDTiles * 4];

  const Sm90Shared<Traits> shared;
  const int group;
  const int warp;  // of the group
  const int lane;
  float s[1][kNTiles][4];
  float o[1][kDTiles][4];
  uint32_t p[1][kNTiles / 2][4];
  SoftmaxState<1> state;
  RingPlace<Traits::kStages> k_place, v_place;

  __device__ __forceinline__ Sm90Group(const Sm90Shared<Traits>& where, int in_block)
      : shared(where), group(in_block / 4), warp(in_block % 4), lane(threadIdx.x % 32) {}

  // Both products run on after these return.
  __device__ __forceinline__ void begin_scores() {
    auto& sums = reinterpret_cast<Scores&>(s);
    const uint64_t q = wgmma_matrix(shared.queries() + group * Traits::kGroupRows * 128);
    const uint64_t k = wgmma_matrix(shared.keys(k_place.index));
#pragma unroll
    for (int step = 0; step < Traits::kHeadDim / 16; ++step) {
      const int box = step / 4, in_box = 2 * (step % 4);
      WgmmaScores<T, kBlockN>::multiply(sums, q + box * (Traits::kBlockM * 128 / 16) + in_box,
                                        k + box * (kBlockN * 128 / 16) + in_box, step > 0);
    }
    wgmma_commit();
  }

  __device__ __forceinline__ void begin_values() {
    auto& sums = reinterpret_cast<Outputs&>(o);
    const uint64_t v = wgmma_values(shared.values(v_place.index), kBlockN * 128);
#pragma unroll
    for (int step = 0; step < kNTiles / 2; ++step) {
      WgmmaValues<T, Traits::kHeadDim>::multiply(sums, p[0][step], v + 128 * step);
    }
    wgmma_commit();
  }

  __device__ __forceinline__ void release(uint32_t barrier) const {
    if (lane == 0) barrier_arrive(barrier);
  }
  __device__ __forceinline__ void release_keys() {
    release(shared.keys_empty(k_place.index));
    k_place.advance();
  }
  __device__ __forceinline__ void release_values() {
    release(shared.values_empty(v_place.index));
    v_place.advance();
  }

  __device__ __forceinline__ void wait_for_turn() const { take_turn(1 + group); }
  __device__ __forceinline__ void end_turn() const {
    pass_turn(group + 1 < Traits::kGroups ? 2 + group : 1);
  }

  // A tile that only other groups see.
  __device__ __forceinline__ void skip_tile() {
    wait_for_turn();
    end_turn();
    barrier_wait(shared.keys_full(k_place.index), k_place.parity);
    release_keys();
    barrier_wait(shared.values_full(v_place.index), v_place.parity);
    release_values();
  }

  // Scores to probabilities, in place and still in fp32. True: the output so far has to be
  // multiplied by `alpha`.
  __device__ __forceinline__ bool soften(const AttentionParams& params, const KeyBounds& bounds,
                                         int query, int key, float multiplier, float (&alpha)[2]) {
    if (needs_transform(params)) transform_scores(s, params);
    if (key < bounds.begin(query + 15) || key + kBlockN > bounds.end(query)) {
      mask_scores(s, bounds, key, [&](int row) { return query + row; });
    }
    const bool raised =
        state.raise_max(s, multiplier, [&](int, int half, float factor) { alpha[half] = factor; });
#pragma unroll
    for (int nt = 0; nt < kNTiles; ++nt) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float* x = &s[0][nt][2 * half];
        x[0] = exp2_approx(fmaf(x[0], multiplier, -state.row_max[0][half]));
        x[1] = exp2_approx(fmaf(x[1], multiplier, -state.row_max[0][half]));
        state.row_sum[0][half] += x[0] + x[1];
      }
    }
    return raised;
  }

  __device__ __forceinline__ void pack() {
#pragma unroll
    for (int nt = 0; nt < kNTiles; ++nt) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        p[0][nt / 2][2 * (nt % 2) + half] = pack2<T>(s[0][nt][2 * half], s[0][nt][2 * half + 1]);
      }
    }
    pin_registers(reinterpret_cast<uint32_t (&)[kNTiles * 2]>(p));
  }

  // All tiles of one piece of work, the last one first: while the products of P and V of one tile
  // and the other groups' products run, the next tile's scores are softened.
  __device__ __forceinline__ void attend(const AttentionParams& params,
                                         const Sm90Work<Traits>& work, uint32_t q_parity) {
    state.init();
#pragma unroll
    for (int dt = 0; dt < kDTiles; ++dt) {
#pragma unroll
      for (int i = 0; i < 4; ++i) o[0][dt][i] = 0.0f;
    }
    if (work.tile_begin >= work.tile_end) return;
    const float multiplier = logit_multiplier(params);
    const int group_query = work.query + group * Traits::kGroupRows;
    const int query = group_query + 16 * warp;
    int begin, end;
    work.tiles_of(group_query, Traits::kGroupRows, &begin, &end);
    barrier_wait(shared.queries_full(), q_parity);
    int tile = work.tile_end - 1;
    float alpha[2];
    if (begin < end) {
#pragma unroll 1
      for (; tile >= end; --tile) skip_tile();
      barrier_wait(shared.keys_full(k_place.index), k_place.parity);
      wait_for_turn();
      wgmma_fence();
      begin_scores();
      end_turn();
      wgmma_wait<0>();
      pin_registers(reinterpret_cast<Scores&>(s));
      release_keys();
      soften(params, work.bounds, query, tile * kBlockN, multiplier, alpha);
      --tile;
      if (tile >= begin) barrier_wait(shared.keys_full(k_place.index), k_place.parity);
      pack();
#pragma unroll 1
      while (tile >= begin) {
        wait_for_turn();
        pin_registers(reinterpret_cast<Outputs&>(o));
        wgmma_fence();
        begin_scores();
        barrier_wait(shared.values_full(v_place.index), v_place.parity);
        begin_values();
        end_turn();
        wgmma_wait<1>();
        pin_registers(reinterpret_cast<Scores&>(s));
        release_keys();
        const bool raised = soften(params, work.bounds, query, tile * kBlockN, multiplier, alpha);
        --tile;
        // The compiler would move exponentials to behind the wait for P V, but not across a branch
        // that needs their sums. These are never negative.
        const bool never = fminf(state.row_sum[0][0], state.row_sum[0][1]) < 0.0f;
        if (static_cast<int>(tile >= begin) | static_cast<int>(never)) {
          barrier_wait(shared.keys_full(k_place.index), k_place.parity);
        }
        wgmma_wait<0>();
        pin_registers(reinterpret_cast<Outputs&>(o));
        release_values();
        if (raised) {
#pragma unroll
          for (int dt = 0; dt < kDTiles; ++dt) {
#pragma unroll
            for (int i = 0; i < 4; ++i) o[0][dt][i] *= alpha[i / 2];
          }
        }
        pack();
      }
      release(shared.queries_empty());
      barrier_wait(shared.values_full(v_place.index), v_place.parity);
      pin_registers(reinterpret_cast<Outputs&>(o));
      wgmma_fence();
      begin_values();
      wgmma_wait<0>();
      pin_registers(reinterpret_cast<Outputs&>(o));
      release_values();
    } else {
      release(shared.queries_empty());
    }
#pragma unroll 1
    for (; tile >= work.tile_begin; --tile) skip_tile();
  }

  // Normalises, and writes the rows below seq_len_q and the columns below head_dim: through shared
  // memory, warp by warp, so that global writes are 16 bytes a lane.
  __device__ __forceinline__ void store(const AttentionParams& params,
                                        const Sm90Work<Traits>& work) {
    const int query = work.query + group * Traits::kGroupRows + 16 * warp;
    const uint32_t staged = shared.output() + (group * 4 + warp) * 16 * Layout::kRowBytes;
    state.finish();
    __syncwarp();  // what was staged before has been read
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = state.row_sum[0][half];
      const float inverse = inverse_sum(sum);
      const int row = 8 * half + lane / 4;
#pragma unroll
      for (int dt = 0; dt < kDTiles; ++dt) {
        store_shared_4(staged + Layout::offset(row, dt) + 4 * (lane % 4),
                       pack2<T>(o[0][dt][2 * half] * inverse, o[0][dt][2 * half + 1] * inverse));
      }
      if (params.lse != nullptr && lane % 4 == 0 && query + row < work.seq_len_q) {
        const int64_t head = work.block.batch * params.num_heads + work.block.head;
        params.lse[head * params.seq_len_q + query + row] =
            log_sum_exp(state.row_max[0][half], sum);
      }
    }
    __syncwarp();
    T* out = static_cast<T*>(params.out) + work.block.batch * params.out_stride.batch +
             work.block.head * params.out_stride.head;
    constexpr int kRowsPerPass = 32 / Layout::kChunks;
    const int chunk = lane % Layout::kChunks;
#pragma unroll
    for (int pass = 0; pass < 16; pass += kRowsPerPass) {
      const int row = pass + lane / Layout::kChunks;
      if (query + row >= work.seq_len_q || chunk * 8 >= params.head_dim) continue;
      // The output is the op's own: dense, so that every row is 16-byte aligned.
      *reinterpret_cast<uint4*>(out + (query + row) * params.out_stride.seq + chunk * 8) =
          load_shared_16(staged + Layout::offset(row, chunk));
    }
  }
};

}  // namespace flashint8::cuda
