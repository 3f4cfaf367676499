// 9 to 32 rows of x on Hopper, where a block for each 32 or 48 channels fills the chip once: a
// kernel between the gemv, whose tiles of 16 channels would each read all of x, and the gemm, whose
// blocks have to share tiles and meet.
//
// Work: a block has block_n channels, all rows of x and the whole of k. Its warps go round k in
// units of 128, as the gemv's, so that a block reads kWarps * 128 contiguous bytes of each weight
// row, and each value of x once.
//
// Layout: the gemv's (gemv.cuh). 16 channels of converted weights meet all rows of x, and 8 rows of
// x two or three times 16 channels.
//
// x: each warp has a ring of its own for half units, which it fills itself, asynchronously: it
// waits for no other. A row's half unit is 128 bytes, whose 16-byte pieces are exchanged (piece ^
// (row & 7)), so that what eight lanes read together lies in different banks.
//
// Weights come straight into registers; a half unit's are asked for as soon as those of the same
// half of the unit before have been used. Ready ones are asked for before the kernel ahead has
// ended. Of others the first two units are brought into L2 then, but for 16 rows: blocks of which
// two share a multiprocessor come so early that they would take memory's time from the kernel
// ahead.
//
// Sums of the warps meet in shared memory and are added in warp order: same bits on every run.
#pragma once

#include <cuda_runtime.h>

#include "../device/convert.cuh"
#include "../device/cp_async.cuh"
#include "../device/dependent_launch.cuh"
#include "../device/global_load.cuh"
#include "../device/linear_ptx.cuh"
#include "../device/shared_memory.cuh"
#include "../function_attributes.cuh"
#include "../launch_kernel.cuh"
#include "epilogue.cuh"
#include "flashint8/plan.h"
#include "gemv_products.cuh"
#include "launch.cuh"
#include "variants.h"

namespace flashint8::cuda {

// Four neighbouring channels of a row, scaled: their outputs, two where they are gated.
template <typename T>
__device__ __forceinline__ void store_four_channels(const Int8LinearParams& p, int64_t row,
                                                    int64_t channel, float (&y)[4]) {
  int count = 4;
  if (p.activation != Activation::kNone) {
    const bool gated = p.activation == Activation::kSiluMul;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!gated || i % 2 == 0) y[i] = activate(y[i], p.activation);
    }
    if (gated) {
      y[0] *= y[1];
      y[1] = y[2] * y[3];
      channel /= 2;
      count = 2;
    }
  }
  const int64_t columns = out_columns(p);
  T* out = static_cast<T*>(p.out) + row * columns + channel;
  if (count == 4 && columns % 4 == 0 && reinterpret_cast<uintptr_t>(p.out) % 8 == 0) {
    *reinterpret_cast<uint2*>(out) = make_uint2(pack2<T>(y[0], y[1]), pack2<T>(y[2], y[3]));
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < count && channel + i < columns) out[i] = from_float<T>(y[i]);
  }
}

template <typename T, int kTile>
__global__ void __launch_bounds__(32 * kGemvSm90Warps, kGemvSm90Tiles[kTile].min_blocks)
    int8_linear_gemv_sm90_kernel(const __grid_constant__ Int8LinearParams p) {
  constexpr GemvSm90Tile kShape = kGemvSm90Tiles[kTile];
  constexpr int kWarps = kGemvSm90Warps, kStages = kGemvSm90Stages, kHalf = kGemvSm90StageK;
  constexpr int kBlockM = kShape.block_m, kBlockN = kShape.block_n;
  constexpr int kRowTiles = kBlockM / 8, kChannelTiles = kBlockN / 16;
  constexpr int kRowBytes = 2 * kHalf, kStageBytes = kBlockM * kRowBytes;
  constexpr int kPitch = kBlockN + 4;  // of the sums, in floats
  static_assert(kRowBytes == 128 && 2 * kHalf == kGemvUnit);
  static_assert(4 * kPitch * kBlockM <= kStages * kStageBytes);  // a warp's sums in its ring

  extern __shared__ __align__(128) uint8_t shared[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int g = lane / 4, t = lane % 4;
  const int num_k = static_cast<int>(p.k), num_rows = static_cast<int>(p.m);
  const int64_t first = int64_t{blockIdx.x} * kBlockN;  // channel
  const auto channels = static_cast<int>(min(p.n - first, int64_t{kBlockN}));

  // The warp's half units, and the first k of each.
  const int units = (num_k + kGemvUnit - 1) / kGemvUnit;
  const int num_halves = 2 * max(0, (units - warp + kWarps - 1) / kWarps);
  const auto k_of = [&](int half) {
    return (warp + half / 2 * kWarps) * kGemvUnit + half % 2 * kHalf;
  };

  // [channels 16c + g, 16c + g + 8]. A channel past the end is read as the last one; past the end
  // of a row something finite: x is zero there.
  uint4 weights[2][kChannelTiles][2] = {};
  const uint64_t policy = l2_evict_first_policy();
  const uint8_t* weight_rows =
      reinterpret_cast<const uint8_t*>(p.weight) + first * p.weight_stride + 16 * t;
  const auto load_weights = [&](int half, uint4(&to)[kChannelTiles][2]) {
    const int k = k_of(half);
    const bool exists = k + 16 * t < num_k;
#pragma unroll
    for (int c = 0; c < kChannelTiles; ++c) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const auto channel = static_cast<uint32_t>(min(16 * c + 8 * r + g, channels - 1));
        const uint32_t offset = channel * static_cast<uint32_t>(p.weight_stride);
        load_streaming_16_if(exists, to[c][r], weight_rows + offset + k, policy);
      }
    }
  };

  // A lane copies the same piece of every fourth row.
  const uint32_t ring = shared_address(shared) + warp * kStages * kStageBytes;
  const int piece = lane % 8, copied_row = lane / 8;
  const int64_t x_stride = 2 * p.x_rows.stride[3];
  const uint8_t* x_rows = static_cast<const uint8_t*>(p.x) + copied_row * x_stride;
  const auto bring_x = [&](int half, int stage) {
    if (half < num_halves) {
      const int k = k_of(half) + 8 * piece;
      const uint8_t* source = x_rows + (k < num_k ? 2 * k : 0);
#pragma unroll
      for (int row = 0; row < kBlockM; row += 4) {
        const int swizzled = (piece ^ (row + copied_row) & 7) * 16;
        const uint32_t to = ring + stage * kStageBytes + (row + copied_row) * kRowBytes + swizzled;
        if (row + copied_row < num_rows) cp_async_16(to, source + row * x_stride, k < num_k);
      }
    }
    cp_async_commit();
  };

  if (threadIdx.x % kScalesOfLine == 0 && static_cast<int>(threadIdx.x) < channels) {
    prefetch_channels<T>(p, first + threadIdx.x);
  }
  if (p.weight_ready) {
    load_weights(0, weights[0]);
    load_weights(1, weights[1]);
  } else if (kShape.min_blocks == 1) {
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const int k = k_of(2 * u);
      for (int c = lane; c < channels && k < num_k; c += 32) {
        prefetch_l2_line(p.weight + (first + c) * p.weight_stride + k);
      }
    }
  }
  wait_for_prerequisite();
  allow_dependent_launch();
  if (!p.weight_ready) {
    load_weights(0, weights[0]);
    load_weights(1, weights[1]);
  }
#pragma unroll
  for (int half = 0; half < kStages - 1; ++half) bring_x(half, half);

  float sum[kChannelTiles][kRowTiles][4] = {};
  int stage = 0, last_stage = kStages - 1;
  for (int begin = 0; begin < num_halves; begin += 2) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      cp_async_wait<kStages - 2>();
      __syncwarp();  // all lanes' pieces are there, and the last stage's have been read
      bring_x(begin + h + kStages - 1, last_stage);
      uint4 x[kRowTiles][2];  // [rows][first, last 8 values of the lane's 16]
#pragma unroll
      for (int j = 0; j < kRowTiles; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          x[j][i] = load_shared_16(ring + stage * kStageBytes + (8 * j + g) * kRowBytes +
                                   (2 * t + i ^ g) * 16);
        }
      }
#pragma unroll
      for (int c = 0; c < kChannelTiles; ++c) multiply_half_unit<T>(sum[c], weights[h][c], x);
      load_weights(begin + h + 2, weights[h]);
      last_stage = stage;
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
  }

  // A thread finishes four channels of some rows.
  constexpr int kQuads = kBlockN / 4, kRowsAtOnce = 32 * kWarps / kQuads;
  const int quad = static_cast<int>(threadIdx.x) % kQuads;
  int row = static_cast<int>(threadIdx.x) / kQuads;
  float scale[4] = {}, bias[4] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (4 * quad + i >= channels) break;
    scale[i] = p.weight_scale[first + 4 * quad + i];
    bias[i] = load_bias<T>(p.bias, first + 4 * quad + i);
  }

  // The warp's ring is free: nothing is on its way, and all lanes have read.
  __syncwarp();
  constexpr int kRegion = kStages * kStageBytes / 4;  // of a warp, in floats
  float* const sums = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int c = 0; c < kChannelTiles; ++c) {
#pragma unroll
    for (int j = 0; j < kRowTiles; ++j) {
      leave_sums<kPitch>(sums + warp * kRegion + (8 * j + 2 * t) * kPitch + 16 * c + g, sum[c][j]);
    }
  }
  __syncthreads();
  if (row >= kRowsAtOnce || 4 * quad >= channels) return;
  for (; row < num_rows; row += kRowsAtOnce) {
    float y[4] = {};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      add_fragment(y,
                   *reinterpret_cast<const float4*>(sums + w * kRegion + row * kPitch + 4 * quad));
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) y[i] = fmaf(y[i], scale[i], bias[i]);
    store_four_channels<T>(p, row, first + 4 * quad, y);
  }
}

template <typename T, int kTile>
cudaError_t launch_gemv_sm90_of(const Int8LinearParams& params, const LinearPlan& plan,
                                cudaStream_t stream) {
  constexpr auto kKernel = &int8_linear_gemv_sm90_kernel<T, kTile>;
  constexpr int kBytes = gemv_sm90_shared_bytes(kGemvSm90Tiles[kTile]);
  if (const cudaError_t error = allow_shared_memory<kKernel>(kBytes)) return error;
  return launch_kernel(kKernel, dim3(static_cast<unsigned>(plan.num_blocks)), 32 * kGemvSm90Warps,
                       kBytes, plan.dependent_launch, stream, params);
}

template <int kTile>
cudaError_t launch_gemv_sm90(const Int8LinearParams& params, const LinearPlan& plan,
                             cudaStream_t stream) {
  return params.dtype == DType::kFloat16
             ? launch_gemv_sm90_of<__half, kTile>(params, plan, stream)
             : launch_gemv_sm90_of<__nv_bfloat16, kTile>(params, plan, stream);
}

}  // namespace flashint8::cuda
