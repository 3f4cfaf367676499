// More rows of x: tiles on the tensor cores, weights turned to 16 bits in registers.
//
// Work: a block owns block_n channels x block_m rows and one of gridDim.y ranges of k. Its warps
// are a grid warps_n x warps_m over the tile, times warps_k groups: group w takes the w-th 64 of
// each k tile, so that a small block still has warp tiles large enough to use each weight, once
// made 16-bit, several times. The groups' sums meet in shared memory in group order. With several
// ranges of k the fp32 fragments go to the workspace and split_sum.cu adds them, in order.
//
// Layout: as in gemv.cuh, channels are the m = 16 side of mma.m16n8k16 and rows of x the n = 8
// side, and k is permuted so that fragments are contiguous. Of half h (32 wide) of a 64-wide slice
// a lane (g, t) reads the weight bytes k = 32h + 8t .. + 7, of which word s (0, 1) holds its four k
// of mma step s; of x it reads the 16 bytes at the same k: piece 4h + t of a row.
//
// Shared memory, a stage: for each of the warps_k slices W[block_n][64 bytes], then for each slice
// x[block_m][128 bytes], in 16-byte pieces. The lanes served at once must meet 128 different bytes
// modulo 128:
//  - W reads, 8 bytes x 16 lanes: four rows x 32 bytes. Rows r with r & 2 keep piece c at c ^ 2.
//    W writes, 16 bytes x 8 lanes: two whole rows, or with warps_k > 1 one row of two slices, which
//    would meet: odd slices keep row r at r ^ 1.
//  - x reads, 16 bytes x 8 lanes: two rows x 64 bytes. Odd rows keep piece c at c ^ 4.
//    x writes, 16 bytes x 8 lanes: one whole row.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "../device/cp_async.cuh"
#include "../device/dequant.cuh"
#include "../device/linear_ptx.cuh"
#include "../device/mma.cuh"
#include "../function_attributes.cuh"
#include "epilogue.cuh"
#include "flashint8/plan.h"
#include "variants.h"

namespace flashint8::cuda {

// Tiles in groups of kGroupM rows of tiles, so that the blocks that run together share weights and
// x in L2.
__device__ __forceinline__ void locate_tile(int index, int tiles_m, int tiles_n, int& tile_m,
                                            int& tile_n) {
  constexpr int kGroupM = 8;
  if (tiles_m == 1) {
    tile_m = 0;
    tile_n = index;
    return;
  }
  // A group has at most all tiles, of which there are less than 2^31; no product overflows.
  const int64_t group_tiles = int64_t{kGroupM} * tiles_n;
  const int first = group_tiles > index ? 0 : index / static_cast<int>(group_tiles) * kGroupM;
  const int size = min(tiles_m - first, kGroupM);
  const int within = index - first * tiles_n;
  tile_n = within / size;
  tile_m = first + within - tile_n * size;
}

template <typename T, int kTile>
__global__ void __launch_bounds__(32 * gemm_warps(kGemmTiles[kTile]))
    int8_linear_gemm_kernel(const __grid_constant__ Int8LinearParams p) {
  constexpr GemmTile kShape = kGemmTiles[kTile];
  constexpr int kBlockM = kShape.block_m, kBlockN = kShape.block_n, kSlices = kShape.warps_k;
  constexpr int kBlockK = gemm_block_k(kShape), kStages = kShape.stages;
  constexpr int kThreads = 32 * gemm_warps(kShape);
  constexpr int kWarpM = kBlockM / kShape.warps_m, kWarpN = kBlockN / kShape.warps_n;
  constexpr int kTilesM = kWarpM / 8, kTilesN = kWarpN / 16;
  constexpr int kStageBytes = gemm_stage_bytes(kShape);
  constexpr int kSliceBytesW = kBlockN * 64, kSliceBytesX = kBlockM * 128;
  constexpr int kPiecesW = 4 * kSlices, kPiecesX = 8 * kSlices;  // 16-byte pieces of a row
  constexpr int kRowStepW = kThreads / kPiecesW, kRowStepX = kThreads / kPiecesX;
  constexpr int kLoadsW = kBlockN / kRowStepW, kLoadsX = kBlockM / kRowStepX;
  static_assert(kWarpM % 8 == 0 && kWarpN % 16 == 0 && kStages >= 2);
  static_assert(kRowStepW % 4 == 0 && kRowStepX % 2 == 0);
  static_assert(kLoadsW * kRowStepW == kBlockN && kLoadsX * kRowStepX == kBlockM);
  // the groups' sums lie over the stages
  static_assert((kSlices - 1) * kBlockM * kBlockN * 4 <= kStages * kStageBytes);

  extern __shared__ __align__(128) uint8_t shared[];
  float* const scale_tile = reinterpret_cast<float*>(shared);
  float* const bias_tile = scale_tile + kBlockN;
  const uint32_t stages = shared_address(shared) + gemm_epilogue_bytes(kShape);

  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int g = lane / 4, t = lane % 4;
  const int warp_n = warp % kShape.warps_n, warp_m = warp / kShape.warps_n % kShape.warps_m;
  const int slice = warp / (kShape.warps_n * kShape.warps_m);

  const int tiles_m = static_cast<int>(ceil_div(p.m, kBlockM));
  const int tiles_n = static_cast<int>(ceil_div(p.n, kBlockN));
  int tile_m, tile_n;
  locate_tile(blockIdx.x, tiles_m, tiles_n, tile_m, tile_n);
  const int64_t m0 = int64_t{tile_m} * kBlockM, n0 = int64_t{tile_n} * kBlockN;
  const int64_t k_tiles = ceil_div(p.k, kBlockK);
  const int64_t k_begin = k_tiles * blockIdx.y / gridDim.y;
  const int num_k = static_cast<int>(k_tiles * (blockIdx.y + 1) / gridDim.y - k_begin);

  // Rows a thread copies: byte offsets in units of 16, one piece each. Rows past the end repeat the
  // last one; what they give is not stored.
  const int piece_w = thread % kPiecesW, piece_x = thread % kPiecesX;
  const int row_w = thread / kPiecesW, row_x = thread / kPiecesX;
  uint32_t offset_w[kLoadsW], offset_x[kLoadsX];
#pragma unroll
  for (int i = 0; i < kLoadsW; ++i) {
    const int64_t n = min(n0 + row_w + i * kRowStepW, p.n - 1);
    offset_w[i] = static_cast<uint32_t>(n * (p.weight_stride / 16)) + piece_w;
  }
#pragma unroll
  for (int i = 0; i < kLoadsX; ++i) {
    const int64_t m = min(m0 + row_x + i * kRowStepX, p.m - 1);
    offset_x[i] = static_cast<uint32_t>(x_row_offset(p.x_rows, m) / 8) + piece_x;
  }
  const uint64_t policy = tiles_m == 1 ? l2_evict_first_policy() : l2_evict_normal_policy();

  // Row steps keep the low bits of a row, and with them the exchange of its pieces.
  const int slice_w = piece_w / 4, slice_x = piece_x / 8;
  const uint32_t dst_w = stages + slice_w * kSliceBytesW + (row_w ^ (slice_w & 1)) * 64 +
                         (piece_w % 4 ^ (row_w & 2)) * 16;
  const uint32_t dst_x = stages + kSlices * kSliceBytesW + slice_x * kSliceBytesX + row_x * 128 +
                         (piece_x % 8 ^ (row_x & 1) * 4) * 16;
  // The same in every thread.
  const int8_t* src_w = p.weight + k_begin * kBlockK;
  const uint8_t* src_x = static_cast<const uint8_t*>(p.x) + k_begin * kBlockK * 2;

  // Only the last k tile of all has pieces that stick out of a row, or lie outside.
  const int tail = static_cast<int>(p.k - (k_tiles - 1) * kBlockK);  // 1 .. kBlockK
  const int tail_w = max(min(tail - piece_w * 16, 16), 0);
  const int tail_x = max(min(2 * tail - piece_x * 16, 16), 0);
  const int last_tile = blockIdx.y + 1 == gridDim.y && tail < kBlockK ? num_k - 1 : num_k;

  const auto load_stage = [&](int tile, uint32_t stage_offset) {
    const auto load = [&](auto whole) {
#pragma unroll
      for (int i = 0; i < kLoadsW; ++i) {
        const uint32_t dst = dst_w + stage_offset + i * kRowStepW * 64;
        cp_async_16_indexed<decltype(whole)::value>(dst, src_w, offset_w[i], tail_w, policy);
      }
#pragma unroll
      for (int i = 0; i < kLoadsX; ++i) {
        const uint32_t dst = dst_x + stage_offset + i * kRowStepX * 128;
        cp_async_16_indexed<decltype(whole)::value>(dst, src_x, offset_x[i], tail_x);
      }
    };
    if (tile == last_tile) {  // copies of fewer than 16 bytes cost more instructions
      load(std::false_type());
    } else {
      load(std::true_type());
    }
    src_w += kBlockK;
    src_x += 2 * kBlockK;
  };

#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < num_k) load_stage(s, s * kStageBytes);
    cp_async_commit();
  }
  for (int i = thread; i < kBlockN; i += kThreads) {
    const bool valid = n0 + i < p.n;
    scale_tile[i] = valid ? p.weight_scale[n0 + i] : 0.0f;
    bias_tile[i] = valid ? load_bias<T>(p.bias, n0 + i) : 0.0f;
  }

  // A lane's rows are g plus multiples of 8: the exchanges above depend on g alone.
  uint32_t read_w[2], read_x[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    read_w[h] = stages + slice * kSliceBytesW + warp_n * kWarpN * 64 + (g ^ (slice & 1)) * 64 +
                ((2 * h + t / 2) ^ (g & 2)) * 16 + t % 2 * 8;
    read_x[h] = stages + kSlices * kSliceBytesW + slice * kSliceBytesX + warp_m * kWarpM * 128 +
                g * 128 + ((4 * h + t) ^ (g & 1) * 4) * 16;
  }

  float sum[kTilesN][kTilesM][4] = {};
  uint32_t stage = 0, stage_to_load = (kStages - 1) * kStageBytes;
  for (int tile = 0; tile < num_k; ++tile) {
    cp_async_wait<kStages - 2>();
    __syncthreads();
    if (tile + kStages - 1 < num_k) load_stage(tile + kStages - 1, stage_to_load);
    cp_async_commit();
    stage_to_load = stage;

#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint32_t weights[2][kTilesN][4];  // of mma steps 0 and 1
#pragma unroll
      for (int i = 0; i < kTilesN; ++i) {
        const uint2 low = load_shared_8(read_w[h] + stage + i * 16 * 64);
        const uint2 high = load_shared_8(read_w[h] + stage + (i * 16 + 8) * 64);
        Int8To16<T>::dequantize(low.x, weights[0][i][0], weights[0][i][2]);
        Int8To16<T>::dequantize(high.x, weights[0][i][1], weights[0][i][3]);
        Int8To16<T>::dequantize(low.y, weights[1][i][0], weights[1][i][2]);
        Int8To16<T>::dequantize(high.y, weights[1][i][1], weights[1][i][3]);
      }
#pragma unroll
      for (int j = 0; j < kTilesM; ++j) {
        const uint4 x = load_shared_16(read_x[h] + stage + j * 8 * 128);
#pragma unroll
        for (int i = 0; i < kTilesN; ++i) mma_m16n8k16<T>(sum[i][j], weights[0][i], x.x, x.y);
#pragma unroll
        for (int i = 0; i < kTilesN; ++i) mma_m16n8k16<T>(sum[i][j], weights[1][i], x.z, x.w);
      }
    }
    stage = stage + kStageBytes == kStages * kStageBytes ? 0 : stage + kStageBytes;
  }

  if constexpr (kSlices > 1) {
    constexpr int kWarpsTile = kShape.warps_m * kShape.warps_n;
    constexpr int kFragments = kTilesM * kTilesN;
    cp_async_wait<0>();
    __syncthreads();
    const int warp_tile = warp % kWarpsTile;
    auto* exchange = reinterpret_cast<float4*>(shared + gemm_epilogue_bytes(kShape)) + lane;
    if (slice > 0) {
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
        const float (&c)[4] = sum[f / kTilesM][f % kTilesM];
        exchange[(((slice - 1) * kWarpsTile + warp_tile) * kFragments + f) * 32] =
            make_float4(c[0], c[1], c[2], c[3]);
      }
    }
    __syncthreads();
    if (slice > 0) return;
#pragma unroll
    for (int w = 0; w < kSlices - 1; ++w) {
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
        const float4 v = exchange[((w * kWarpsTile + warp_tile) * kFragments + f) * 32];
        float (&c)[4] = sum[f / kTilesM][f % kTilesM];
        c[0] += v.x;
        c[1] += v.y;
        c[2] += v.z;
        c[3] += v.w;
      }
    }
  } else {
    __syncthreads();  // scale_tile, where there was no k tile
  }

  constexpr int kFragmentsPerTile = (kBlockM / 8) * (kBlockN / 16);
  const int tile_index = tile_n * tiles_m + tile_m;
  const OutputTile<T> output(p, m0 + warp_m * kWarpM, n0 + warp_n * kWarpN, lane);
#pragma unroll
  for (int i = 0; i < kTilesN; ++i) {
    const int channel = warp_n * kWarpN + 16 * i;
    const ChannelPair channels = {{scale_tile[channel + g], scale_tile[channel + g + 8]},
                                  {bias_tile[channel + g], bias_tile[channel + g + 8]}};
#pragma unroll
    for (int j = 0; j < kTilesM; ++j) {
      const int row = warp_m * kWarpM + 8 * j;
      if (m0 + row >= p.m) continue;
      const float (&c)[4] = sum[i][j];
      if (gridDim.y > 1) {
        const int fragment = channel / 16 * (kBlockM / 8) + row / 8;
        static_cast<float4*>(
            p.workspace)[fragment_index(blockIdx.y, int64_t{tiles_m} * tiles_n, tile_index,
                                        kFragmentsPerTile, fragment, lane)] =
            make_float4(c[0], c[1], c[2], c[3]);
      } else {
        output.store(i, j, c, channels);
      }
    }
  }
}

template <typename T, int kTile>
cudaError_t launch_gemm_of(const Int8LinearParams& params, const LinearPlan& plan,
                           cudaStream_t stream) {
  constexpr GemmTile kShape = kGemmTiles[kTile];
  constexpr auto kKernel = &int8_linear_gemm_kernel<T, kTile>;
  constexpr int kBytes = gemm_shared_bytes(kShape);
  if (const cudaError_t error = allow_shared_memory<kKernel>(kBytes)) return error;
  const dim3 grid(static_cast<unsigned>(plan.num_blocks / plan.num_splits),
                  static_cast<unsigned>(plan.num_splits));
  kKernel<<<grid, 32 * gemm_warps(kShape), kBytes, stream>>>(params);
  return cudaGetLastError();
}

template <int kTile>
cudaError_t launch_gemm(const Int8LinearParams& params, const LinearPlan& plan,
                        cudaStream_t stream) {
  return params.dtype == DType::kFloat16
             ? launch_gemm_of<__half, kTile>(params, plan, stream)
             : launch_gemm_of<__nv_bfloat16, kTile>(params, plan, stream);
}

}  // namespace flashint8::cuda
