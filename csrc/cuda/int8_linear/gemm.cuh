// More rows of x: tiles on the tensor cores, weights turned to 16 bits in registers.
//
// Work: a block owns runs of (tile, k tile) units (schedule.cuh) and walks them as one stream, so
// that its ring of stages never drains, not even between two tiles. Its warps are a grid warps_n x
// warps_m over the tile of block_n channels x block_m rows.
//
// Layout: as in gemv.cuh, channels are the m = 16 side of mma.m16n8k16 and rows of x the n = 8
// side, and k is permuted so that fragments are contiguous. Of half h (32 wide) of a k tile a lane
// (g, t) reads the weight bytes k = 32h + 8t .. + 7, of which word s (0, 1) holds its four k of mma
// step s; of x it reads the 16 bytes at the same k: piece 4h + t of a row.
//
// Shared memory, a stage: for each 64 of k W[block_n][64 bytes], then for each x[block_m][128
// bytes], in 16-byte pieces. The lanes served at once must meet 128 different bytes modulo 128:
//  - W reads, 8 bytes x 16 lanes: four rows x 32 bytes. Rows r with r & 2 keep piece c at c ^ 2.
//    W writes, 16 bytes x 8 lanes: two whole rows, or one row of two chunks, which would meet: odd
//    chunks keep row r at r ^ 1.
//  - x reads, 16 bytes x 8 lanes: two rows x 64 bytes. Odd rows keep piece c at c ^ 4.
//    x writes, 16 bytes x 8 lanes: one whole row.
//
// Time: while a half is multiplied, the weights of the next are read, and x a step ahead. The
// barrier stands before the last half of a k tile, where products are queued on both sides of it.
// What is done beside mma.sync costs by the registers it reads (docs/performance.md).
#pragma once

#include <cuda_runtime.h>

#include <type_traits>
#include <utility>

#include "../device/cp_async.cuh"
#include "../device/dependent_launch.cuh"
#include "../device/dequant.cuh"
#include "../device/global_load.cuh"
#include "../device/linear_ptx.cuh"
#include "../device/mma.cuh"
#include "../function_attributes.cuh"
#include "../launch_kernel.cuh"
#include "epilogue.cuh"
#include "flashint8/plan.h"
#include "schedule.cuh"
#include "variants.h"

namespace flashint8::cuda {

// row_offset for 31-bit rows, without the library's 64-bit division: a call would cost registers.
__device__ __forceinline__ int64_t offset_of_row(const RowLayout& rows, int row) {
  auto m = static_cast<uint32_t>(row);
  int64_t offset = 0;
#pragma unroll
  for (int d = 3; d >= 0; --d) {
    const auto size = static_cast<uint32_t>(rows.size[d]);
    if (m < size) return offset + m * rows.stride[d];  // the usual x ends here at once
    const uint32_t outer = m / size;
    offset += (m - outer * size) * rows.stride[d];
    m = outer;
  }
  return offset;
}

template <typename T, int kTile>
__global__ void __launch_bounds__(32 * gemm_warps(kGemmTiles[kTile]), kGemmTiles[kTile].min_blocks)
    int8_linear_gemm_kernel(const __grid_constant__ Int8LinearParams p,
                            const __grid_constant__ GemmSchedule schedule) {
  constexpr GemmTile kShape = kGemmTiles[kTile];
  constexpr int kBlockM = kShape.block_m, kBlockN = kShape.block_n;
  constexpr int kThreads = 32 * gemm_warps(kShape);
  constexpr int kWarpM = kBlockM / kShape.warps_m, kWarpN = kBlockN / kShape.warps_n;
  constexpr int kTilesM = kWarpM / 8, kTilesN = kWarpN / 16;
  constexpr int kChunks = kShape.chunks, kBlockK = gemm_block_k(kShape), kStages = kShape.stages;
  constexpr int kStageBytes = gemm_stage_bytes(kShape);
  constexpr int kChunkW = kBlockN * 64, kChunkX = kBlockM * 128;
  constexpr int kPiecesW = 4 * kChunks, kPiecesX = 8 * kChunks;  // 16-byte pieces of a row
  constexpr int kRowStepW = kThreads / kPiecesW, kRowStepX = kThreads / kPiecesX;
  constexpr int kLoadsW = kBlockN / kRowStepW;
  constexpr int kLoadsX = kBlockM > kRowStepX ? kBlockM / kRowStepX : 1;
  // A step multiplies all of the warp's weights with kStepM fragments of x.
  constexpr int kStepM = kTilesN >= 4    ? (kTilesM >= 8 ? 1 : 2)
                         : kTilesM >= 16 ? 2
                         : kTilesM < 4   ? kTilesM
                                         : 4;
  constexpr int kSteps = kTilesM / kStepM;
  // Where the next kernel may come onto the chip: large tiles would share the multiprocessor's
  // time with its first loads.
  constexpr bool kEarly = kBlockM < 128;
#if __CUDA_ARCH__ >= 900
  constexpr bool kListed = false;
#else
  // Without registers to spare, the rows of x come from the table in shared memory.
  constexpr bool kListed = kBlockM >= 128;
#endif
  constexpr bool kStreams = kBlockM < 128;                 // weights may be read by one block alone
  constexpr int kReads = (kTilesN + kSteps - 1) / kSteps;  // fragments of weights, of the next half
  static_assert(kWarpM % 8 == 0 && kWarpN % 16 == 0 && kTilesM % kStepM == 0 && kStages >= 3);
  static_assert(kRowStepW % 4 == 0 && kRowStepX % 2 == 0);
  static_assert(kLoadsW * kRowStepW == kBlockN && kBlockN <= kThreads);
  static_assert(kLoadsX * kRowStepX == kBlockM || kLoadsX == 1);

  extern __shared__ __align__(128) uint8_t shared[];
  float* const scale_tile = reinterpret_cast<float*>(shared);
  float* const bias_tile = scale_tile + kBlockN;
  auto* const offset_x = reinterpret_cast<uint32_t*>(bias_tile + kBlockN);  // of rows, by 16 bytes
  const uint32_t ring = shared_address(shared) + gemm_header_bytes(kShape);

  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int g = lane / 4, t = lane % 4;
  const int warp_n = warp % kShape.warps_n, warp_m = warp / kShape.warps_n;

  const int k_tiles = schedule.k_tiles;
  const int64_t first_unit = schedule.first_unit(blockIdx.x);
  const int count = static_cast<int>(schedule.first_unit(blockIdx.x + 1) - first_unit);
  const int first_tile = static_cast<int>(first_unit / k_tiles);
  const int first_k = static_cast<int>(first_unit - int64_t{first_tile} * k_tiles);

  // What is copied next, and the rows a thread copies, one piece of each. Rows past the end are not
  // copied: what lies in their place is multiplied, and not stored.
  const int piece_w = thread % kPiecesW, piece_x = thread % kPiecesX;
  const int row_w = thread / kPiecesW, row_x = thread / kPiecesX;
  const uint32_t stride_w = static_cast<uint32_t>(p.weight_stride / 16);
  const bool is_regular = p.x_rows.size[3] >= p.m;  // rows of x are all one stride apart
  const uint32_t stride_x = static_cast<uint32_t>(p.x_rows.stride[3] / 8);
  int load_tile = first_tile, load_k = first_k;
  uint32_t offset_w, first_x;  // of this thread's first rows, in units of 16 bytes, as offset_x
  int rows_w, rows_x;          // from this thread's first row to the end
  const auto set_rows = [&] {
    int tile_m, tile_n;
    locate_tile(schedule, load_tile, tile_m, tile_n);
    const int64_t n = int64_t{tile_n} * kBlockN + row_w;
    const int m = tile_m * kBlockM + row_x;
    offset_w = static_cast<uint32_t>(n) * stride_w + piece_w;
    first_x = static_cast<uint32_t>(m) * stride_x + piece_x;
    rows_w = static_cast<int>(p.n - n);
    rows_x = min(static_cast<int>(p.m) - m, kBlockM - row_x);
    __syncwarp();  // a row's offset is written and read by one warp
#pragma unroll 1
    for (int i = 0; piece_x == 0 && i < rows_x; i += kRowStepX) {
      offset_x[row_x + i] = static_cast<uint32_t>(offset_of_row(p.x_rows, m + i) / 8);
    }
    __syncwarp();
    if (thread < kBlockN / 32 && tile_n * kBlockN + 32 * thread < p.n) {
      prefetch_l2_line(p.weight_scale + tile_n * kBlockN + 32 * thread);
    }
  };
  set_rows();
  const uint64_t policy =
      schedule.tiles_m == 1 ? l2_evict_first_policy() : l2_evict_normal_policy();

  // The first stages' weights may be fetched into L2 while the kernel before this one still runs:
  // that reads nothing yet.
  if constexpr (kEarly) allow_dependent_launch();
  for (int row = thread; row < kBlockN; row += kThreads) {
    int tile_m, tile_n;
    locate_tile(schedule, first_tile, tile_m, tile_n);
    const int64_t n = int64_t{tile_n} * kBlockN + row;
    const int64_t begin = int64_t{first_k} * kBlockK;
    if (n < p.n) {
      const int64_t bytes = min(p.k - begin, int64_t{min(count, kStages)} * kBlockK);
      for (int64_t offset = 0; offset < bytes; offset += 128) {
        prefetch_l2_line(p.weight + n * p.weight_stride + begin + offset);
      }
    }
  }
  wait_for_prerequisite();

  // Row steps keep the low bits of a row, and with them the exchange of its pieces.
  const int chunk_w = piece_w / 4, chunk_x = piece_x / 8;
  const uint32_t dst_w =
      ring + chunk_w * kChunkW + (row_w ^ (chunk_w & 1)) * 64 + (piece_w % 4 ^ (row_w & 2)) * 16;
  const uint32_t dst_x = ring + kChunks * kChunkW + chunk_x * kChunkX + row_x * 128 +
                         (piece_x % 8 ^ (row_x & 1) * 4) * 16;
  // Only the last k tile has pieces that stick out of a row, or lie outside.
  const int tail = static_cast<int>(p.k - int64_t{k_tiles - 1} * kBlockK);  // 0 .. kBlockK
  const int partial_k = tail < kBlockK ? k_tiles - 1 : -1;

  const auto load_unit = [&](uint32_t stage_offset) {
    const int8_t* src_w = p.weight + int64_t{load_k} * kBlockK;
    const uint8_t* src_x = static_cast<const uint8_t*>(p.x) + int64_t{load_k} * (2 * kBlockK);
    const auto load = [&](auto whole, auto offset_of, int left) {
      constexpr bool kWhole = decltype(whole)::value;
#pragma unroll
      for (int i = 0; i < kLoadsW; ++i) {
        if (i * kRowStepW >= rows_w) continue;
        const uint32_t dst = dst_w + stage_offset + i * kRowStepW * 64;
        const uint32_t offset = offset_w + i * kRowStepW * stride_w;
        if constexpr (kStreams) {
          cp_async_16_indexed<kWhole>(dst, src_w, offset, left - piece_w * 16, policy);
        } else {
          cp_async_16_indexed<kWhole>(dst, src_w, offset, left - piece_w * 16);
        }
      }
#pragma unroll
      for (int i = 0; i < kLoadsX; ++i) {
        if (i * kRowStepX >= rows_x) continue;
        cp_async_16_indexed<kWhole>(dst_x + stage_offset + i * kRowStepX * 128, src_x, offset_of(i),
                                    2 * left - piece_x * 16);
      }
    };
    const auto regular = [&](int i) { return first_x + i * kRowStepX * stride_x; };
    const auto listed = [&](int i) { return offset_x[row_x + i * kRowStepX] + piece_x; };
    if (kListed && load_k != partial_k) {
      load(std::true_type(), listed, kBlockK);
    } else if (!kListed && is_regular && load_k != partial_k) {
      load(std::true_type(), regular, kBlockK);
    } else {  // copies of perhaps fewer than 16 bytes cost more instructions
      const int left = load_k == partial_k ? tail : kBlockK;
      load(std::false_type(), listed, left);
    }
    if (++load_k < k_tiles) return;
    load_k = 0;
    ++load_tile;
    set_rows();
  };

  for (int s = 0; s < kStages - 1; ++s) {
    if (s < count) load_unit(s * kStageBytes);
    cp_async_commit();
  }

  // A lane's rows are g plus multiples of 8: the exchanges above depend on g alone.
  // The other half is at the address with one bit flipped, 32 or 64.
  const uint32_t read_w = ring + warp_n * kWarpN * 64 + g * 64 + (t / 2 ^ (g & 2)) * 16 + t % 2 * 8;
  const uint32_t read_x =
      ring + kChunks * kChunkW + warp_m * kWarpM * 128 + g * 128 + (t ^ (g & 1) * 4) * 16;
  uint2 raw[kTilesN][2];            // of the next half: channels g, g + 8 of a fragment
  uint32_t weights[2][kTilesN][4];  // of this half: [mma step]
  uint4 x[2][kStepM];               // of this step and the next
  const auto read_raw = [&](int i, int half, uint32_t stage) {
    const uint32_t flip = half % 2 * 32 ^ half / 2 % 2 * 64;  // odd chunks exchange rows
    const uint32_t address = (read_w + stage ^ flip) + half / 2 * kChunkW + i * 16 * 64;
    raw[i][0] = load_shared_8(address);
    raw[i][1] = load_shared_8(address + 8 * 64);
  };
  const auto make_ready = [&] {
#pragma unroll
    for (int i = 0; i < kTilesN; ++i) {
      Int8To16<T>::dequantize(raw[i][0].x, weights[0][i][0], weights[0][i][2]);
      Int8To16<T>::dequantize(raw[i][1].x, weights[0][i][1], weights[0][i][3]);
      Int8To16<T>::dequantize(raw[i][0].y, weights[1][i][0], weights[1][i][2]);
      Int8To16<T>::dequantize(raw[i][1].y, weights[1][i][1], weights[1][i][3]);
    }
  };
  const auto read_x_of = [&](int buffer, int half, int step, uint32_t stage) {
#pragma unroll
    for (int j = 0; j < kStepM; ++j) {
      x[buffer][j] = load_shared_16((read_x + stage ^ half % 2 * 64) + half / 2 * kChunkX +
                                    (step * kStepM + j) * 8 * 128);
    }
  };

  cp_async_wait<kStages - 2>();
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kTilesN; ++i) read_raw(i, 0, 0);
  read_x_of(0, 0, 0, 0);

  float sum[kTilesN][kTilesM][4] = {};
  int tile = first_tile, k = first_k;
  bool begins = first_k == 0;  // this block has the tile's first k
  uint32_t stage = 0, load_stage = (kStages - 1) * kStageBytes;
  constexpr int kHalves = 2 * kChunks;
  for (int unit = 0; unit < count; ++unit) {
    const uint32_t next_stage =
        stage + kStageBytes == kStages * kStageBytes ? 0 : stage + kStageBytes;
    const auto multiply_half = [&](auto half_constant) {
      constexpr int half = decltype(half_constant)::value, next_half = (half + 1) % kHalves;
      const uint32_t stage_after = next_half == 0 ? next_stage : stage;
      if (next_half == 0) {
        cp_async_wait<kStages - 3>();
        __syncthreads();
        if (unit + kStages - 1 < count) load_unit(load_stage);
        cp_async_commit();
      }
      make_ready();
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const int now = (half * kSteps + step) % 2;
        const bool last_step = step == kSteps - 1;
#pragma unroll
        for (int i = step * kReads; i < (step + 1) * kReads && i < kTilesN; ++i) {
          read_raw(i, next_half, stage_after);
        }
        read_x_of(1 - now, last_step ? next_half : half, last_step ? 0 : step + 1,
                  last_step ? stage_after : stage);
#pragma unroll
        for (int s = 0; s < 2; ++s) {
#pragma unroll
          for (int i = 0; i < kTilesN; ++i) {
#pragma unroll
            for (int j = 0; j < kStepM; ++j) {
              mma_m16n8k16<T>(sum[i][step * kStepM + j], weights[s][i],
                              s == 0 ? x[now][j].x : x[now][j].z,
                              s == 0 ? x[now][j].y : x[now][j].w);
            }
          }
        }
      }
    };
    [&]<int... kHalf>(std::integer_sequence<int, kHalf...>) {
      (multiply_half(std::integral_constant<int, kHalf>()), ...);
    }(std::make_integer_sequence<int, kHalves>());
    load_stage = stage;
    stage = next_stage;

    if (++k < k_tiles && unit + 1 < count) continue;
    if (!kEarly && unit + 1 == count) allow_dependent_launch();
    int tile_m, tile_n;
    locate_tile(schedule, tile, tile_m, tile_n);
    const int64_t m0 = int64_t{tile_m} * kBlockM, n0 = int64_t{tile_n} * kBlockN;
    if (begins && k == k_tiles) {
      if (thread < kBlockN) {
        const bool valid = n0 + thread < p.n;
        scale_tile[thread] = valid ? p.weight_scale[n0 + thread] : 0.0f;
        bias_tile[thread] = valid ? load_bias<T>(p.bias, n0 + thread) : 0.0f;
      }
      __syncthreads();
      store_output<T>(p, m0 + warp_m * kWarpM, n0 + warp_n * kWarpN, sum, [&](int i, int g) {
        const int channel = warp_n * kWarpN + 16 * i + g;
        return ChannelPair{{scale_tile[channel], scale_tile[channel + 8]},
                           {bias_tile[channel], bias_tile[channel + 8]}};
      });
    } else {
      constexpr int kFragments = (kBlockM / 8) * (kBlockN / 16);
      const int slot = schedule.slot(blockIdx.x, tile, begins);
#pragma unroll
      for (int i = 0; i < kTilesN; ++i) {
#pragma unroll
        for (int j = 0; j < kTilesM; ++j) {
          const int row = warp_m * kWarpM + 8 * j;
          if (m0 + row >= p.m) continue;
          const int fragment = (warp_n * kWarpN / 16 + i) * (kBlockM / 8) + row / 8;
          const float (&c)[4] = sum[i][j];
          static_cast<float4*>(p.workspace)[fragment_index(slot, kFragments, fragment, lane)] =
              make_float4(c[0], c[1], c[2], c[3]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kTilesN; ++i) {
#pragma unroll
      for (int j = 0; j < kTilesM; ++j) {
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[i][j][c] = 0.0f;
      }
    }
    k = 0;
    begins = true;
    ++tile;
  }
}

template <typename T, int kTile>
cudaError_t launch_gemm_of(const Int8LinearParams& params, const LinearPlan& plan,
                           cudaStream_t stream) {
  constexpr GemmTile kShape = kGemmTiles[kTile];
  constexpr auto kKernel = &int8_linear_gemm_kernel<T, kTile>;
  const auto bytes = static_cast<int>(plan.shared_bytes);
  if (const cudaError_t error = allow_shared_memory<kKernel>(bytes)) return error;
  const GemmSchedule schedule =
      gemm_schedule(params, kShape.block_m, kShape.block_n, gemm_block_k(kShape), plan.num_blocks);
  return launch_kernel(kKernel, dim3(static_cast<unsigned>(plan.num_blocks)),
                       32 * gemm_warps(kShape), bytes, plan.dependent_launch, stream, params,
                       schedule);
}

template <int kTile>
cudaError_t launch_gemm(const Int8LinearParams& params, const LinearPlan& plan,
                        cudaStream_t stream) {
  return params.dtype == DType::kFloat16
             ? launch_gemm_of<__half, kTile>(params, plan, stream)
             : launch_gemm_of<__nv_bfloat16, kTile>(params, plan, stream);
}

}  // namespace flashint8::cuda
