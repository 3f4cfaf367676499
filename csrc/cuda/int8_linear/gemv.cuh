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

#include "../device/dependent_launch.cuh"
#include "../device/dequant.cuh"
#include "../device/global_load.cuh"
#include "../device/linear_ptx.cuh"
#include "../device/mma.cuh"
#include "../function_attributes.cuh"
#include "../launch_kernel.cuh"
#include "epilogue.cuh"
#include "flashint8/plan.h"
#include "launch.cuh"
#include "variants.h"

namespace flashint8::cuda {

// Weights that are prefetched into L2, where a block has a single tile: more would take memory's
// time from the kernel ahead. Measured in whole models.
constexpr int64_t kPrefetchUpTo = int64_t{12} << 20;

__device__ __forceinline__ uint32_t word_of(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// How many of the 16 bytes from byte `offset` of a row of `size` bytes exist.
__device__ __forceinline__ int bytes_left(int64_t size, int64_t offset) {
  return static_cast<int>(min(max(size - offset, int64_t{0}), int64_t{16}));
}

// Bytes [offset, offset + 16) of a row, zeros past its end. kVectorized: the row is 16-byte
// aligned. `inside`: all of them exist.
template <bool kVectorized, typename LoadWhole>
__device__ __forceinline__ uint4 load_of_row(const uint8_t* row, int64_t size, int64_t offset,
                                             bool inside, LoadWhole load_whole) {
  if constexpr (kVectorized) {
    if (inside) return load_whole(row + offset);
    const int valid = bytes_left(size, offset);
    return valid == 16 ? load_whole(row + offset) : load_partial_16(row + offset, valid);
  } else {
    return load_unaligned_16(row + offset, bytes_left(size, offset), row, row + size);
  }
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
  constexpr int kRowTiles = kShape.block_m / 8;
  constexpr int kLog2BlockN = 4;
  static_assert(1 << kLog2BlockN == kGemvBlockN);
  static_assert(kShape.block_m % 8 == 0);
  __shared__ float sums[2][kWarps][kShape.block_m][kGemvPitch];
  static_assert(sizeof(sums) == gemv_sum_bytes(kShape));

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int g = lane / 4, t = lane % 4;
  // 32 bits are enough for counts: a weight of 2^31 channels or an x of 2^31 columns fits no card.
  const int num_units = static_cast<int>(ceil_div(p.k, kGemvUnit));
  const int whole_units = static_cast<int>(p.k / kGemvUnit);
  const int num_tiles = static_cast<int>(ceil_div(p.n, kGemvBlockN));
  const uint64_t policy = l2_evict_first_policy();
  const int64_t first_row = int64_t{blockIdx.x} * kShape.block_m;
  const int num_rows = static_cast<int>(min(p.m - first_row, int64_t{kShape.block_m}));

  const uint8_t* x_rows[kRowTiles];  // nullptr: no such row
#pragma unroll
  for (int j = 0; j < kRowTiles; ++j) {
    const int row = 8 * j + g;
    x_rows[j] = row < num_rows
                    ? static_cast<const uint8_t*>(p.x) + 2 * x_row_offset(p.x_rows, first_row + row)
                    : nullptr;
  }

  uint4 weights[2][2];  // [half of the unit][channels g, g + 8]
  const auto load_weights = [&](int tile, int unit) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      // Channels past the end repeat the last one.
      const int64_t n = min(int64_t{tile} * kGemvBlockN + 8 * r + g, p.n - 1);
      const auto* row = reinterpret_cast<const uint8_t*>(p.weight) + n * p.weight_stride;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        weights[h][r] = load_of_row<kShape.vectorized>(
            row, p.k, int64_t{unit} * kGemvUnit + 64 * h + 16 * t, unit < whole_units,
            [&](const uint8_t* source) { return load_streaming_16(source, policy); });
      }
    }
  };

  // What comes last of all to a tile's values would otherwise come from memory then.
  const auto ask_for_scales = [&](int tile) {
    if (threadIdx.x != 0 || tile >= num_tiles) return;
    const int64_t n = int64_t{tile} * kGemvBlockN;
    prefetch_l2_line(p.weight_scale + n);
    if (p.bias != nullptr) prefetch_l2_line(static_cast<const T*>(p.bias) + n);
  };

  ask_for_scales(blockIdx.y);
  const bool has_work = static_cast<int>(blockIdx.y) < num_tiles && warp < num_units;
  if (p.weight_ready && has_work) {
    load_weights(blockIdx.y, warp);
    const int64_t n = int64_t{blockIdx.y} * kGemvBlockN + lane;
    if (lane < kGemvBlockN && n < p.n && warp + kWarps < num_units &&
        num_tiles <= static_cast<int>(gridDim.y) && p.n * p.k <= kPrefetchUpTo) {
      prefetch_l2_line(p.weight + n * p.weight_stride + (warp + kWarps) * kGemvUnit);
    }
  }
  wait_for_prerequisite();
  allow_dependent_launch();
  if (!p.weight_ready && has_work) load_weights(blockIdx.y, warp);

  int buffer = 0;
  for (int tile = blockIdx.y; tile < num_tiles; tile += gridDim.y, buffer ^= 1) {
    ask_for_scales(tile + static_cast<int>(gridDim.y));
    float sum[kRowTiles][4] = {};
    for (int unit = warp; unit < num_units; unit += kWarps) {
      uint4 x[kRowTiles][2][2];  // [rows][half of the unit][first, last 8 values]
#pragma unroll
      for (int j = 0; j < kRowTiles; ++j) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            x[j][h][i] = make_uint4(0, 0, 0, 0);
            if (x_rows[j] == nullptr) continue;
            x[j][h][i] = load_of_row<kShape.vectorized>(
                x_rows[j], 2 * p.k, 2 * (int64_t{unit} * kGemvUnit + 64 * h + 16 * t) + 16 * i,
                unit < whole_units, [](const uint8_t* source) { return load_cached_16(source); });
          }
        }
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          uint32_t a[4];
          Int8To16<T>::dequantize(word_of(weights[h][0], s), a[0], a[2]);
          Int8To16<T>::dequantize(word_of(weights[h][1], s), a[1], a[3]);
#pragma unroll
          for (int j = 0; j < kRowTiles; ++j) {
            mma_m16n8k16<T>(sum[j], a, word_of(x[j][h][s / 2], 2 * (s % 2)),
                            word_of(x[j][h][s / 2], 2 * (s % 2) + 1));
          }
        }
      }
      const bool more = unit + kWarps < num_units;
      const int next_tile = more ? tile : tile + static_cast<int>(gridDim.y);
      if (next_tile < num_tiles) load_weights(next_tile, more ? unit + kWarps : warp);
    }

#pragma unroll
    for (int j = 0; j < kRowTiles; ++j) {
      float* destination = &sums[buffer][warp][8 * j + 2 * t][g];
      destination[0] = sum[j][0];
      destination[kGemvPitch] = sum[j][1];
      destination[8] = sum[j][2];
      destination[kGemvPitch + 8] = sum[j][3];
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
