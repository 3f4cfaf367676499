// Masks and the online softmax of one warp's scores (Milakov and Gimelshein 2018; Dao et al. 2022).
//
// A warp holds scores of kMTiles * 16 queries and kNTiles * 8 keys as mma accumulators
// s[mt][nt][4]: with g = lane / 4 and t = lane % 4, s[mt][nt][0..1] is query 16 mt + g, keys
// 8 nt + 2t and the next; s[mt][nt][2..3] is query 16 mt + g + 8, the same keys.
// A lane therefore has 2 rows a tile, and the 4 lanes of a quad share them.
#pragma once

#include <cfloat>
#include <cstdint>

#include "../device/convert.cuh"
#include "../device/shared_memory.cuh"
#include "flashint8/attention.h"

namespace flashint8::cuda {

// Before any key: finite, so that differences with it are defined, and below every score but those
// of bf16 inputs near the end of their range.
constexpr float kNoMaximum = -FLT_MAX / 2;

// A row keeps its running maximum until a score passes it by more than this (base-2 logarithm):
// any maximum gives the exact result, and exp2(8) = 256 fits every type involved. The output is
// then almost never rescaled, and the check is one vote, without shuffles.
constexpr float kSlack = 8.0f;

constexpr float kLog2e = 1.4426950408889634f;

// Scores are rewritten before the softmax for softcap, and for a scale that is not positive (whose
// order of scores differs).
__device__ __forceinline__ bool needs_transform(const AttentionParams& p) {
  return p.softcap > 0.0f || !(p.scale > 0.0f);
}

// What turns scores (rewritten, where that is needed) into base-2 logits.
__device__ __forceinline__ float logit_multiplier(const AttentionParams& p) {
  return needs_transform(p) ? 1.0f : p.scale * kLog2e;
}

// tanh with a relative error of about 1e-6: 1 - 2 / (exp(2x) + 1), and for small x, where that
// loses its leading digits, the odd series to x^7.
__device__ __forceinline__ float tanh_fast(float x) {
  const float square = x * x;
  if (square < 0.0625f) {
    const float series = fmaf(square, fmaf(square, -17.0f / 315.0f, 2.0f / 15.0f), -1.0f / 3.0f);
    return fmaf(x * square, series, x);
  }
  return 1.0f - __fdividef(2.0f, exp2_approx(2.8853900817779268f * fminf(x, 40.0f)) + 1.0f);
}

// Scores to base-2 logits. Reads the params again rather than keep their quotients in registers.
template <int kMTiles, int kNTiles>
__device__ __forceinline__ void transform_scores(float (&s)[kMTiles][kNTiles][4],
                                                 const AttentionParams& p) {
  const bool capped = p.softcap > 0.0f;
  const float pre = capped ? p.scale / p.softcap : p.scale * kLog2e;
  const float cap = p.softcap * kLog2e;
#pragma unroll
  for (int mt = 0; mt < kMTiles; ++mt) {
#pragma unroll
    for (int nt = 0; nt < kNTiles; ++nt) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float x = s[mt][nt][i] * pre;
        s[mt][nt][i] = capped ? cap * tanh_fast(x) : x;
      }
    }
  }
}

// Keys a query sees: first <= j < last, i + diagonal - window < j <= i + diagonal.
// A window wider than everything stands for none.
struct KeyBounds {
  int first;
  int last;
  int diagonal;
  int window;

  __device__ __forceinline__ int begin(int query) const {
    return max(first, query + diagonal - window + 1);
  }
  __device__ __forceinline__ int end(int query) const { return min(last, query + diagonal + 1); }
};

__device__ __forceinline__ KeyBounds key_bounds(const AttentionParams& p, const RowBounds& row) {
  return {static_cast<int>(row.first), static_cast<int>(row.last), static_cast<int>(row.diagonal),
          static_cast<int>(p.window)};
}

// A warp's numbers for its rows, in shared memory: read once a chunk, where registers would hold
// them throughout (the large tiles have none to spare).
struct WarpKeys {
  int some_begin;  // keys in [some_begin, some_end) are seen by a row of the warp
  int some_end;
  int all_begin;  // keys in [all_begin, all_end) are seen by all of them
  int all_end;
};

__device__ __forceinline__ WarpKeys read_warp_keys(uint32_t address) {
  const uint4 x = load_shared_16(address);
  return {static_cast<int>(x.x), static_cast<int>(x.y), static_cast<int>(x.z),
          static_cast<int>(x.w)};
}

__device__ __forceinline__ KeyBounds read_key_bounds(uint32_t address) {
  const uint4 x = load_shared_16(address);
  return {static_cast<int>(x.x), static_cast<int>(x.y), static_cast<int>(x.z),
          static_cast<int>(x.w)};
}

// Either of them.
__device__ __forceinline__ void write_bounds(uint32_t address, int x, int y, int z, int w) {
  store_shared_16(address, make_uint4(x, y, z, w));
}

// Sets the scores of unseen keys to -infinity. `query` maps a row of the warp's tile (0 ..
// 16 kMTiles - 1) to its query; key0 is the key of column 0.
template <int kMTiles, int kNTiles, typename QueryOfRow>
__device__ __forceinline__ void mask_scores(float (&s)[kMTiles][kNTiles][4],
                                            const KeyBounds& bounds, int key0, QueryOfRow query) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int mt = 0; mt < kMTiles; ++mt) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = query(16 * mt + 8 * half + lane / 4);
      const int begin = bounds.begin(i) - key0 - 2 * (lane % 4);
      const int end = bounds.end(i) - key0 - 2 * (lane % 4);
#pragma unroll
      for (int nt = 0; nt < kNTiles; ++nt) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int j = 8 * nt + e;
          if (j < begin || j >= end) s[mt][nt][2 * half + e] = -INFINITY;
        }
      }
    }
  }
}

// The running state of the rows of one lane: row_max is in base-2 logits, the same in a quad;
// row_sum is this lane's share, added up over the quad at the end.
template <int kMTiles>
struct SoftmaxState {
  float row_max[kMTiles][2];
  float row_sum[kMTiles][2];

  __device__ __forceinline__ void init() {
#pragma unroll
    for (int mt = 0; mt < kMTiles; ++mt) {
      row_max[mt][0] = row_max[mt][1] = kNoMaximum;
      row_sum[mt][0] = row_sum[mt][1] = 0.0f;
    }
  }

  // Raises the maxima where the new scores ask for it, scales the sums to them, and says so. What
  // was added up of the output has to follow: scale(mt, half, factor). Warp-uniform.
  template <int kNTiles, typename Scale>
  __device__ __forceinline__ bool raise_max(const float (&s)[kMTiles][kNTiles][4], float multiplier,
                                            Scale scale) {
    float top[kMTiles][2];
    bool raise = false;
#pragma unroll
    for (int mt = 0; mt < kMTiles; ++mt) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float x = fmaxf(s[mt][0][2 * half], s[mt][0][2 * half + 1]);
#pragma unroll
        for (int nt = 1; nt < kNTiles; ++nt) {
          x = fmaxf(x, fmaxf(s[mt][nt][2 * half], s[mt][nt][2 * half + 1]));
        }
        top[mt][half] = x * multiplier;
        raise |= top[mt][half] > row_max[mt][half] + kSlack;
      }
    }
    if (!__any_sync(0xffffffffu, raise)) return false;
#pragma unroll
    for (int mt = 0; mt < kMTiles; ++mt) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float x = top[mt][half];
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
        const float new_max = fmaxf(row_max[mt][half], x);
        const float alpha = exp2_approx(row_max[mt][half] - new_max);
        row_max[mt][half] = new_max;
        row_sum[mt][half] *= alpha;
        scale(mt, half, alpha);
      }
    }
    return true;
  }

  // The same, and scales `o`, whose rows are those of s.
  template <int kNTiles, int kDTiles>
  __device__ __forceinline__ void update_max(const float (&s)[kMTiles][kNTiles][4],
                                             float multiplier, float (&o)[kMTiles][kDTiles][4]) {
    raise_max(s, multiplier, [&](int mt, int half, float alpha) {
#pragma unroll
      for (int dt = 0; dt < kDTiles; ++dt) {
        o[mt][dt][2 * half] *= alpha;
        o[mt][dt][2 * half + 1] *= alpha;
      }
    });
  }

  // Scores of key tile nt to probabilities: fp32 into the sums, T into the A operand of the second
  // product, whose k step nt / 2 takes tiles nt and nt + 1 as they lie (accumulator and A operand
  // share their layout).
  template <typename T, int kNTiles>
  __device__ __forceinline__ void exponentiate(const float (&s)[kMTiles][kNTiles][4], int nt,
                                               float multiplier,
                                               uint32_t (&p)[kMTiles][kNTiles / 2][4]) {
#pragma unroll
    for (int mt = 0; mt < kMTiles; ++mt) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float x0 = exp2_approx(fmaf(s[mt][nt][2 * half], multiplier, -row_max[mt][half]));
        const float x1 = exp2_approx(fmaf(s[mt][nt][2 * half + 1], multiplier, -row_max[mt][half]));
        row_sum[mt][half] += x0 + x1;
        p[mt][nt / 2][2 * (nt % 2) + half] = pack2<T>(x0, x1);
      }
    }
  }

  // Adds the sums up over the quad.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int mt = 0; mt < kMTiles; ++mt) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float x = row_sum[mt][half];
        x += __shfl_xor_sync(0xffffffffu, x, 1);
        x += __shfl_xor_sync(0xffffffffu, x, 2);
        row_sum[mt][half] = x;
      }
    }
  }
};

// Parts of one row's softmax, merged: the common maximum, the sum, and two adjacent outputs.
struct MergedPair {
  float top;
  float sum;
  float2 x;

  __device__ __forceinline__ float2 state() const { return make_float2(top, sum); }
};

// Merges the first kMost of `count` parts in their order. state(i) is part i's maximum and sum,
// pair(i) its two outputs; unrolled, so that the reads overlap.
template <int kMost, typename State, typename Pair>
__device__ __forceinline__ MergedPair merge_pairs(int count, State state, Pair pair) {
  float2 states[kMost], pairs[kMost];
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    if (i >= count) break;
    states[i] = state(i);
    pairs[i] = pair(i);
  }
  MergedPair merged{kNoMaximum, 0.0f, {0.0f, 0.0f}};
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    if (i < count) merged.top = fmaxf(merged.top, states[i].x);
  }
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    if (i >= count) break;
    const float weight = exp2_approx(states[i].x - merged.top);
    merged.sum += weight * states[i].y;
    merged.x.x += weight * pairs[i].x;
    merged.x.y += weight * pairs[i].y;
  }
  return merged;
}

// What a row's outputs are multiplied with at the end: 0 where it saw no key; a NaN stays one.
__device__ __forceinline__ float inverse_sum(float row_sum) {
  return row_sum == 0.0f ? 0.0f : 1.0f / row_sum;
}

// Natural log-sum-exp of a row; -infinity where it saw no key.
__device__ __forceinline__ float log_sum_exp(float row_max, float row_sum) {
  return row_sum == 0.0f ? -INFINITY : (row_max + __log2f(row_sum)) * 0.6931471805599453f;
}

}  // namespace flashint8::cuda
