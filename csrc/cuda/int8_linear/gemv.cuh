// Few rows of x: a kernel whose time is that of reading the weights once.
//
// Work: a tile is 16 output channels; a block takes tiles blockIdx.y, + gridDim.y, ... for the
// block_m rows of x that blockIdx.x names. Its warps go round the tile's k in units of 128, so that
// a block reads kWarps * 128 contiguous bytes of each weight row.
//
// Layout: out^T = W x^T, so that the few rows of x are the n = 8 side of mma.m16n8k16. With
// g = lane / 4, t = lane % 4 a lane reads, of each half (64) of a unit, the 16 weight bytes
// k = 16t .. 16t + 15 of channels g and g + 8, and the 16 values at the same k of row g of x. The
// order of a contraction is free: the lane's bytes 4s .. 4s + 3 serve as its four k of mma step s
// (0..3), and x alike, so nothing is shuffled. Sums come out as C[channel g, g + 8][row 2t, 2t +
// 1].
//
// Ends: 16-byte loads are predicated, not branched around, so that those of a unit stand together
// and little code runs between a unit's arrival and the next one's request. Past the end of a row x
// is zero.
//
// Ahead: weights that are ready, as those of a model between its kernels, are asked for before the
// kernel ahead has ended: their way from memory is hidden behind its last part. Of small weights
// each warp's second unit is brought into L2 then, too.
//
// In flight: each lane asks for its next unit (64 bytes) as soon as it has used the last one, and
// many warps do: with 32 a multiprocessor that is 64 KB. Deeper rings in registers or shared memory
// with fewer warps were slower (docs/performance.md). x stays in L1, the weights pass by it.
//
// Sums of the warps meet in shared memory and are added in warp order: same bits on every run. Two
// buffers, so that one barrier a tile is enough.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "../device/dependent_launch.cuh"
#include "../device/global_load.cuh"
#include "../device/linear_ptx.cuh"
#include "../function_attributes.cuh"
#include "../launch_kernel.cuh"
#include "epilogue.cuh"
#include "flashint8/plan.h"
#include "gemv_products.cuh"
#include "launch.cuh"
#include "variants.h"

namespace flashint8::cuda {

// Weights that are prefetched into L2, where a block has a single tile: more would take memory's
// time from the kernel ahead. Measured in whole models.
constexpr int64_t kPrefetchUpTo = int64_t{12} << 20;

// Bytes [offset, offset + 16) of a row of `size` bytes at any address, zeros past its end.
__device__ __forceinline__ uint4 load_of_row(const uint8_t* row, int64_t size, int64_t offset) {
  const int valid = static_cast<int>(min(max(size - offset, int64_t{0}), int64_t{16}));
  return load_unaligned_16(row + offset, valid, row, row + size);
}

#ifdef __CUDA_ARCH__
constexpr int kCompiledFor = __CUDA_ARCH__ / 10;
#else
constexpr int kCompiledFor = 90;
#endif

template <typename T, int kTile>
__global__ void __launch_bounds__(32 * kGemvTiles[kTile].num_warps,
                                  gemv_min_blocks(kGemvTiles[kTile], kCompiledFor))
    int8_linear_gemv_kernel(const __grid_constant__ Int8LinearParams p) {
  constexpr GemvTile kShape = kGemvTiles[kTile];
  constexpr int kWarps = kShape.num_warps;
  constexpr bool kVectorized = kShape.vectorized;  // k is a multiple of 16, too
  constexpr int kRowTiles = kShape.block_m / 8;
  constexpr int kLog2BlockN = 4;
  static_assert(1 << kLog2BlockN == kGemvBlockN);
  static_assert(kShape.block_m % 8 == 0);
  __shared__ float sums[2][kWarps][kShape.block_m][kGemvPitch];
  static_assert(sizeof(sums) == gemv_sum_bytes(kShape));

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int g = lane / 4, t = lane % 4;
  // Tiles fit 32 bits: a weight of 2^35 channels fits no card.
  using Index = std::conditional_t<kVectorized, int, int64_t>;  // of k: see can_vectorize
  const auto num_k = static_cast<Index>(p.k);
  const int num_tiles = static_cast<int>(ceil_div(p.n, kGemvBlockN));
  const uint64_t policy = l2_evict_first_policy();
  const int64_t first_row = int64_t{blockIdx.x} * kShape.block_m;
  const int num_rows = static_cast<int>(min(p.m - first_row, int64_t{kShape.block_m}));

  // A channel past the end is read as one before it.
  const uint8_t* weight_row = nullptr;  // of channel g of the tile; kVectorized: from byte 16t on
  int second = 0;                       // how many channels further the lane's other one is
  const auto point_at = [&](int tile) {
    const int64_t n = int64_t{tile} * kGemvBlockN + g;
    weight_row = reinterpret_cast<const uint8_t*>(p.weight) + min(n, p.n - 1) * p.weight_stride +
                 (kVectorized ? 16 * t : 0);
    second = n + 8 < p.n ? 8 : 0;
  };

  // [half of the unit][channels g, g + 8]. Past the end of a row something finite: x is zero there.
  uint4 weights[2][2] = {};
  const auto load_weights = [&](Index begin) {
    const Index k = begin + 16 * t;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if constexpr (kVectorized) {
          const auto pieces = static_cast<uint32_t>(p.weight_stride / 16);
          const uint8_t* row = weight_row + static_cast<uint64_t>(16u * r * second) * pieces;
          load_streaming_16_if(k + 64 * h < num_k, weights[h][r],
                               row + static_cast<uint32_t>(begin) + 64 * h, policy);
        } else {
          weights[h][r] = load_of_row(weight_row + r * second * p.weight_stride, p.k, k + 64 * h);
        }
      }
    }
  };

  const uint8_t* x_rows[kRowTiles];  // nullptr: no such row
#pragma unroll
  for (int j = 0; j < kRowTiles; ++j) {
    const int row = 8 * j + g;
    x_rows[j] = row < num_rows
                    ? static_cast<const uint8_t*>(p.x) + 2 * x_row_offset(p.x_rows, first_row + row)
                    : nullptr;
  }

  const auto ask_for_scales = [&](int tile) {
    if (threadIdx.x != 0 || tile >= num_tiles) return;
    prefetch_channels<T>(p, int64_t{tile} * kGemvBlockN);
  };

  ask_for_scales(blockIdx.y);
  point_at(blockIdx.y);
  const bool has_work = static_cast<int>(blockIdx.y) < num_tiles && warp * kGemvUnit < num_k;
  if (p.weight_ready && has_work) {
    load_weights(warp * kGemvUnit);
    const int64_t n = int64_t{blockIdx.y} * kGemvBlockN + lane;
    if (lane < kGemvBlockN && n < p.n && (warp + kWarps) * kGemvUnit < num_k &&
        num_tiles <= static_cast<int>(gridDim.y) && p.n * p.k <= kPrefetchUpTo) {
      prefetch_l2_line(p.weight + n * p.weight_stride + (warp + kWarps) * kGemvUnit);
    }
  }
  wait_for_prerequisite();
  allow_dependent_launch();
  if (!p.weight_ready && has_work) load_weights(warp * kGemvUnit);

  int buffer = 0;
  for (int tile = blockIdx.y; tile < num_tiles; tile += gridDim.y, buffer ^= 1) {
    ask_for_scales(tile + static_cast<int>(gridDim.y));
    float sum[kRowTiles][4] = {};
    for (Index begin = warp * kGemvUnit; begin < num_k; begin += kWarps * kGemvUnit) {
      const Index k = begin + 16 * t;
      uint4 x[2][kRowTiles][2] = {};  // [half of the unit][rows][first, last 8 values]
#pragma unroll
      for (int j = 0; j < kRowTiles; ++j) {
        const bool is_row = x_rows[j] != nullptr;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int offset = 128 * h + 16 * i;
            if constexpr (kVectorized) {
              load_cached_16_if(is_row && k + 64 * h < num_k, x[h][j][i],
                                x_rows[j] + 2 * static_cast<uint32_t>(k) + offset);
            } else if (is_row) {
              x[h][j][i] = load_of_row(x_rows[j], 2 * p.k, 2 * k + offset);
            }
          }
        }
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) multiply_half_unit<T>(sum, weights[h], x[h]);
      if (begin + kWarps * kGemvUnit < num_k) {
        load_weights(begin + kWarps * kGemvUnit);
      } else if (tile + static_cast<int>(gridDim.y) < num_tiles) {
        point_at(tile + gridDim.y);
        load_weights(warp * kGemvUnit);
      }
    }

#pragma unroll
    for (int j = 0; j < kRowTiles; ++j) {
      leave_sums<kGemvPitch>(&sums[buffer][warp][8 * j + 2 * t][g], sum[j]);
    }
    __syncthreads();
    const auto value_of = [&](int row, int channel) {
      float total = 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) total += sums[buffer][w][row][channel];
      const int64_t n = int64_t{tile} * kGemvBlockN + channel;
      return fmaf(total, p.weight_scale[n], load_bias<T>(p.bias, n));
    };
    const int gated = p.activation == Activation::kSiluMul;  // an output comes from two channels
    const int columns = kGemvBlockN >> gated;
    const int64_t row_stride = out_columns(p);
    for (int i = threadIdx.x; i < num_rows * columns; i += 32 * kWarps) {
      const int row = i >> kLog2BlockN - gated, column = i & columns - 1;
      const int64_t n = int64_t{tile} * columns + column;
      if (n >= row_stride) continue;
      float y = activate(value_of(row, column << gated), p.activation);
      if (gated) y *= value_of(row, 2 * column + 1);
      static_cast<T*>(p.out)[(first_row + row) * row_stride + n] = from_float<T>(y);
    }
  }
}

template <typename T, int kTile>
cudaError_t launch_gemv_of(const Int8LinearParams& params, const LinearPlan& plan,
                           cudaStream_t stream) {
  constexpr GemvTile kShape = kGemvTiles[kTile];
  constexpr auto kKernel = &int8_linear_gemv_kernel<T, kTile>;
  // Beside the sums; unused, it only bounds how many blocks a multiprocessor takes.
  const auto bytes = static_cast<int>(plan.shared_bytes);
  if (bytes > 0) {
    if (const cudaError_t error = allow_shared_memory<kKernel>(bytes)) return error;
  }
  const auto rows = static_cast<unsigned>(ceil_div(params.m, kShape.block_m));
  const dim3 grid(rows, static_cast<unsigned>(plan.num_blocks / rows));
  return launch_kernel(kKernel, grid, 32 * kShape.num_warps, bytes, plan.dependent_launch, stream,
                       params);
}

template <int kTile>
cudaError_t launch_gemv(const Int8LinearParams& params, const LinearPlan& plan,
                        cudaStream_t stream) {
  return params.dtype == DType::kFloat16
             ? launch_gemv_of<__half, kTile>(params, plan, stream)
             : launch_gemv_of<__nv_bfloat16, kTile>(params, plan, stream);
}

}  // namespace flashint8::cuda
