// Few rows of x: a kernel whose time is that of reading the weights once.
//
// Work: a tile is kBlockN output channels x kBlockM rows of x. A block takes tiles blockIdx.x,
// + gridDim.x, ...; its warps split the tile's k in chunks of 64, warp w the chunks w, w +
// num_warps,
// ..., so that a block reads num_warps * 64 contiguous bytes of each weight row at a time.
//
// Layout: out^T = W x^T, so that the few rows of x are the n = 8 side of mma.m16n8k16. With
// g = lane / 4, t = lane % 4 a lane reads the 16 weight bytes k = 16t .. 16t+15 of rows g and g + 8
// of each 16 channels, and the 16 values at the same k of row g of x. The order of a contraction is
// free: the lane's bytes 4s .. 4s+3 serve as its four k of mma step s (0..3), and x alike, so
// nothing is shuffled. Sums come out as C[channel g, g + 8][row 2t, 2t + 1].
//
// Pipeline: every lane copies what it alone will read, with cp.async into its own 16-byte slots of
// a ring kStages deep; no barrier, and bytes in flight do not cost registers. Slots of a warp are
// 512 contiguous bytes, so neither side has bank conflicts. The ring runs on over tile boundaries:
// the next tile's weights are on their way while this one's sums are added.
//
// Sums of the warps meet in shared memory as [warp][row][channel], pitch = 4 (mod 16) floats: lane
// (g, t) writes bank 2t * pitch + g = 8t + g (mod 32), all different. They are added in warp order.
#pragma once

#include <cuda_runtime.h>

#include "../device/cp_async.cuh"
#include "../device/dequant.cuh"
#include "../device/linear_ptx.cuh"
#include "../device/mma.cuh"
#include "epilogue.cuh"
#include "flashint8/plan.h"
#include "launch_util.cuh"
#include "variants.h"

namespace flashint8::cuda {

// The first `valid` of the 16 bytes at `src`, of any alignment, and zeros. Reads nothing outside
// [src, src + valid): whole words where all of those that hold the 16 bytes lie in [begin, end).
__device__ __forceinline__ uint4 load_unaligned_16(const uint8_t* src, int valid,
                                                   const uint8_t* begin, const uint8_t* end) {
  const auto address = reinterpret_cast<uintptr_t>(src);
  const uint8_t* aligned = src - address % 4;
  uint32_t value[4] = {0, 0, 0, 0};
  if (valid == 16 && aligned >= begin && aligned + 20 <= end) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(aligned);
    const uint32_t shift = 8 * (address % 4);
    uint32_t word = __ldg(words);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t next = __ldg(words + i + 1);
      value[i] = __funnelshift_r(word, next, shift);
      word = next;
    }
  } else {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      if (i < valid) value[i / 4] |= static_cast<uint32_t>(__ldg(src + i)) << (8 * (i % 4));
    }
  }
  return make_uint4(value[0], value[1], value[2], value[3]);
}

__device__ __forceinline__ uint32_t word_of(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

template <typename T, int kTile>
__global__ void __launch_bounds__(32 * gemv_max_warps(kGemvTiles[kTile]))
    int8_linear_gemv_kernel(const __grid_constant__ Int8LinearParams p) {
  constexpr GemvTile kShape = kGemvTiles[kTile];
  constexpr int kRowGroups = kShape.block_n / 8;  // weight rows g of 8
  constexpr int kTilesN = kShape.block_n / 16, kTilesM = kShape.block_m / 8;
  constexpr int kSlotBytes = gemv_slot_bytes(kShape), kPitch = gemv_sum_pitch(kShape);
  constexpr int kStages = kShape.stages;
  constexpr bool kVectorized = kShape.vectorized;
  static_assert(kShape.block_n % 16 == 0 && kShape.block_m % 8 == 0 && kPitch % 16 == 4);
  static_assert(512 * kRowGroups + 1024 * kTilesM == kSlotBytes);

  extern __shared__ __align__(16) uint8_t shared[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, num_warps = blockDim.x / 32;
  const int g = lane / 4, t = lane % 4;
  const uint32_t ring = shared_address(shared) + warp * kStages * kSlotBytes + lane * 16;
  float* sums = reinterpret_cast<float*>(shared + num_warps * kStages * kSlotBytes);

  // 32 bits are enough: 2^31 tiles would have an output of 512 GiB.
  const int num_chunks = static_cast<int>(ceil_div(p.k, kLinearChunkK));
  const int tiles_m = static_cast<int>(ceil_div(p.m, kShape.block_m));
  const int num_tiles = tiles_m * static_cast<int>(ceil_div(p.n, kShape.block_n));
  const uint64_t policy = tiles_m == 1 ? l2_evict_first_policy() : l2_evict_normal_policy();

  // The load cursor runs kStages chunks ahead of the products.
  int load_tile = blockIdx.x, load_chunk = warp;
  if (warp >= num_chunks) load_tile = num_tiles;
  const int8_t* weight_rows[kRowGroups];  // at this lane's first k
  const uint8_t* x_rows[kTilesM];
  bool x_valid[kTilesM];

  const auto set_rows = [&] {
    const int tile_n = tiles_m == 1 ? load_tile : load_tile / tiles_m;
    const int tile_m = load_tile - tile_n * tiles_m;
#pragma unroll
    for (int i = 0; i < kRowGroups; ++i) {  // channels past the end repeat the last one
      const int64_t n = min(int64_t{tile_n} * kShape.block_n + 8 * i + g, p.n - 1);
      weight_rows[i] = p.weight + n * p.weight_stride + 16 * t;
    }
#pragma unroll
    for (int j = 0; j < kTilesM; ++j) {
      const int64_t m = int64_t{tile_m} * kShape.block_m + 8 * j + g;
      x_valid[j] = m < p.m;
      x_rows[j] = static_cast<const uint8_t*>(p.x) +
                  2 * (x_row_offset(p.x_rows, x_valid[j] ? m : 0) + 16 * t);
    }
  };

  const auto load_next = [&](uint32_t slot) {
    if (load_tile < num_tiles) {
      const int64_t k = int64_t{load_chunk} * kLinearChunkK;
      const int left = load_chunk + 1 < num_chunks
                           ? 16
                           : static_cast<int>(max(min(p.k - k - 16 * t, int64_t{16}), int64_t{0}));
      const int left_x[2] = {min(2 * left, 16), max(2 * left - 16, 0)};
#pragma unroll
      for (int i = 0; i < kRowGroups; ++i) {
        const int8_t* src = weight_rows[i] + k;
        if constexpr (kVectorized) {
          cp_async_16_part(slot + 512 * i, src, left, policy);
        } else {
          const auto* row = reinterpret_cast<const uint8_t*>(weight_rows[i]) - 16 * t;
          store_shared_16(slot + 512 * i, load_unaligned_16(reinterpret_cast<const uint8_t*>(src),
                                                            left, row, row + p.k));
        }
      }
#pragma unroll
      for (int j = 0; j < kTilesM; ++j) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const uint8_t* src = x_rows[j] + 2 * k + 16 * h;
          const uint32_t dst = slot + 512 * (kRowGroups + 2 * j + h);
          const int bytes = x_valid[j] ? left_x[h] : 0;
          if constexpr (kVectorized) {
            cp_async_16_part(dst, src, bytes);
          } else {
            const uint8_t* row = x_rows[j] - 32 * t;
            store_shared_16(dst, load_unaligned_16(src, bytes, row, row + 2 * p.k));
          }
        }
      }
      load_chunk += num_warps;
      if (load_chunk >= num_chunks) {
        load_chunk = warp;
        load_tile += gridDim.x;
        if (load_tile < num_tiles) set_rows();
      }
    }
    cp_async_commit();
  };

  if (load_tile < num_tiles) set_rows();
#pragma unroll 1
  for (int s = 0; s < kStages; ++s) load_next(ring + s * kSlotBytes);

  const int channel = threadIdx.x % kShape.block_n;  // of the thread's outputs
  int stage = 0;
  for (int tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
    const int tile_n = tiles_m == 1 ? tile : tile / tiles_m;
    const int64_t m0 = int64_t{tile - tile_n * tiles_m} * kShape.block_m;
    const int64_t n = int64_t{tile_n} * kShape.block_n + channel;
    const float scale = n < p.n ? p.weight_scale[n] : 0.0f;
    const float bias = n < p.n ? load_bias<T>(p.bias, n) : 0.0f;

    float sum[kTilesN][kTilesM][4] = {};
    for (int chunk = warp; chunk < num_chunks; chunk += num_warps) {
      cp_async_wait<kStages - 1>();
      const uint32_t slot = ring + stage * kSlotBytes;
      stage = stage + 1 == kStages ? 0 : stage + 1;
      uint4 weights[kRowGroups], x[kTilesM][2];
#pragma unroll
      for (int i = 0; i < kRowGroups; ++i) weights[i] = load_shared_16(slot + 512 * i);
#pragma unroll
      for (int j = 0; j < kTilesM; ++j) {
        x[j][0] = load_shared_16(slot + 512 * (kRowGroups + 2 * j));
        x[j][1] = load_shared_16(slot + 512 * (kRowGroups + 2 * j + 1));
      }
      load_next(slot);
#pragma unroll
      for (int s = 0; s < 4; ++s) {
#pragma unroll
        for (int i = 0; i < kTilesN; ++i) {
          uint32_t a[4];
          Int8To16<T>::dequantize(word_of(weights[2 * i], s), a[0], a[2]);
          Int8To16<T>::dequantize(word_of(weights[2 * i + 1], s), a[1], a[3]);
#pragma unroll
          for (int j = 0; j < kTilesM; ++j) {
            mma_m16n8k16<T>(sum[i][j], a, word_of(x[j][s / 2], 2 * (s % 2)),
                            word_of(x[j][s / 2], 2 * (s % 2) + 1));
          }
        }
      }
    }

    const int rows = static_cast<int>(min(p.m - m0, int64_t{kShape.block_m}));
#pragma unroll
    for (int j = 0; j < kTilesM; ++j) {
      const int row = 8 * j + 2 * t;
      if (row < rows) {
#pragma unroll
        for (int i = 0; i < kTilesN; ++i) {
          float* dst = sums + (warp * kShape.block_m + row) * kPitch + 16 * i + g;
          dst[0] = sum[i][j][0];
          dst[kPitch] = sum[i][j][1];
          dst[8] = sum[i][j][2];
          dst[kPitch + 8] = sum[i][j][3];
        }
      }
    }
    __syncthreads();
    if (n < p.n) {
      const int row_step = blockDim.x / kShape.block_n;
      for (int row = threadIdx.x / kShape.block_n; row < rows; row += row_step) {
        float total = 0.0f;
        for (int w = 0; w < num_warps; ++w) {
          total += sums[(w * kShape.block_m + row) * kPitch + channel];
        }
        static_cast<T*>(p.out)[(m0 + row) * p.n + n] = from_float<T>(fmaf(total, scale, bias));
      }
    }
    __syncthreads();
  }
}

template <int kTile>
cudaError_t launch_gemv(const Int8LinearParams& params, const LinearPlan& plan,
                        cudaStream_t stream) {
  static SharedMemoryLimit limits[2];
  const bool half = params.dtype == DType::kFloat16;
  const auto kernel =
      half ? int8_linear_gemv_kernel<__half, kTile> : int8_linear_gemv_kernel<__nv_bfloat16, kTile>;
  const int bytes = static_cast<int>(plan.shared_bytes);
  if (const cudaError_t error = limits[half].raise(reinterpret_cast<const void*>(kernel), bytes)) {
    return error;
  }
  kernel<<<static_cast<unsigned>(plan.num_blocks), 32 * plan.num_warps, bytes, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace flashint8::cuda
