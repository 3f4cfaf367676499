// The decode kernel's own token: its query is rotated in registers; its key and value go to the
// cache, and beside the rings to where the warp that reads their tile finds them.
//
// The token's row is the last that the queries see, so it lies in the last tile of the last split.
// That tile's warp takes k and v to shared memory (`staged`: the row of keys, the row of values,
// then which row of the cache they are) while it waits for its queries, and into the tile once the
// cached rows around them have come.
#pragma once

#include <type_traits>

#include "../device/rotary.cuh"
#include "../device/shared_memory.cuh"
#include "flashint8/decoder.h"
#include "tile.cuh"

namespace flashint8::cuda {

// q: as load_query_fragments leaves it, of one token. A lane's partners are its own: columns c and
// c + kHeadDim / 2 are half the steps apart.
template <class Traits>
__device__ __forceinline__ void rotate_query(uint32_t (&q)[Traits::kKSteps][4],
                                             const float* table) {
  constexpr int kHalf = Traits::kKSteps / 2;
  const float* cos_row = table + 2 * (threadIdx.x % 4);
#pragma unroll
  for (int step = 0; step < kHalf; ++step) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const float* cos_pair = cos_row + 16 * step + 8 * part;
      const float2 cos = *reinterpret_cast<const float2*>(cos_pair);
      const float2 sin = *reinterpret_cast<const float2*>(cos_pair + Traits::kHeadDim / 2);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        rotate_words<typename Traits::Element>(cos, sin, q[step][half + 2 * part],
                                               q[step + kHalf][half + 2 * part]);
      }
    }
  }
}

// A warp brings row `position` of the caches to `staged`, and, where `to_cache`, to the caches.
template <class Traits>
__device__ __forceinline__ void stage_token(const RopeAppendParams& p, int64_t batch, int kv_head,
                                            int position, bool to_cache, uint32_t staged) {
  using T = typename Traits::Element;
  const auto row = [&](auto* base, const AttentionStrides& s) {
    return base + batch * s.batch + kv_head * s.head;
  };
  const T* k = row(static_cast<const T*>(p.k), p.k_stride);
  const T* v = row(static_cast<const T*>(p.v), p.v_stride);
  T* k_cache = row(static_cast<T*>(p.k_cache), p.k_cache_stride) + position * p.k_cache_stride.seq;
  T* v_cache = row(static_cast<T*>(p.v_cache), p.v_cache_stride) + position * p.v_cache_stride.seq;
  const auto word = [](auto* pointer) -> auto& {
    using Word = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(pointer)>>,
                                    const uint32_t, uint32_t>;
    return *reinterpret_cast<Word*>(pointer);
  };
  const int half = static_cast<int>(p.head_dim) / 2;
  for (int low = 2 * (threadIdx.x % 32); low < half; low += 64) {
    const int high = low + half;
    uint32_t k_low = word(k + low), k_high = word(k + high);
    const uint32_t v_low = word(v + low), v_high = word(v + high);
    if (p.cos_sin != nullptr) {
      const float* cos_pair = table_row(p, position) + low;
      rotate_words<T>(*reinterpret_cast<const float2*>(cos_pair),
                      *reinterpret_cast<const float2*>(cos_pair + half), k_low, k_high);
    }
    store_shared_4(staged + 2 * low, k_low);
    store_shared_4(staged + 2 * high, k_high);
    store_shared_4(staged + 2 * (Traits::kHeadDim + low), v_low);
    store_shared_4(staged + 2 * (Traits::kHeadDim + high), v_high);
    if (to_cache) {
      word(k_cache + low) = k_low;
      word(k_cache + high) = k_high;
      word(v_cache + low) = v_low;
      word(v_cache + high) = v_high;
    }
  }
}

// Which row of the cache is staged; -1: none.
template <class Traits>
__device__ __forceinline__ uint32_t staged_row_address(uint32_t staged) {
  return staged + 4 * Traits::kHeadDim;
}

// A warp puts the staged row into its tiles, which begin at row `row0` of the cache and have come;
// nothing where the row is not theirs.
template <class Traits>
__device__ __forceinline__ void insert_token(uint32_t staged, int head_dim, int row0,
                                             uint32_t k_tile, uint32_t v_tile) {
  using Layout = TileLayout<Traits::kHeadDim>;
  const int row = static_cast<int>(load_shared_16(staged_row_address<Traits>(staged)).x) - row0;
  if (row < 0 || row >= Traits::kKeys) return;
#pragma unroll 1
  for (int chunk = threadIdx.x % 32; 8 * chunk < head_dim; chunk += 32) {
    const uint32_t place = Layout::offset(row, chunk);
    store_shared_16(k_tile + place, load_shared_16(staged + 16 * chunk));
    store_shared_16(v_tile + place, load_shared_16(staged + 2 * Traits::kHeadDim + 16 * chunk));
  }
  __syncwarp();
}

}  // namespace flashint8::cuda
