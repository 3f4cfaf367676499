// Adds the partial sums of the tiles that several blocks shared, in the order of k, and writes the
// output. One warp a fragment (16 channels x 8 rows); it reads 512 contiguous bytes a split, a lane
// its own four sums, in the layout gemm.cuh wrote. Tiles that one block had whole are left alone.
#include <cuda_runtime.h>

#include "../device/dependent_launch.cuh"
#include "../launch_kernel.cuh"
#include "epilogue.cuh"
#include "launch.cuh"
#include "schedule.cuh"

namespace flashint8::cuda {

constexpr int kSplitSumWarps = 4;

template <typename T>
__global__ void __launch_bounds__(32 * kSplitSumWarps)
    int8_linear_split_sum_kernel(const __grid_constant__ Int8LinearParams p,
                                 const __grid_constant__ GemmSchedule schedule, int block_m,
                                 int block_n) {
  allow_dependent_launch();
  const int lane = threadIdx.x % 32;
  const int fragments_m = block_m / 8, per_tile = fragments_m * (block_n / 16);
  const int64_t index = int64_t{blockIdx.x} * kSplitSumWarps + threadIdx.x / 32;
  const int tile = static_cast<int>(index / per_tile);
  const int fragment = static_cast<int>(index - int64_t{tile} * per_tile);
  if (tile >= schedule.tiles_m * schedule.tiles_n) return;
  int tile_m, tile_n;
  locate_tile(schedule, tile, tile_m, tile_n);
  const int64_t m = int64_t{tile_m} * block_m + fragment % fragments_m * 8;
  const int64_t n = int64_t{tile_n} * block_n + fragment / fragments_m * 16;
  if (m >= p.m || n >= p.n) return;
  const int64_t unit = int64_t{tile} * schedule.k_tiles;
  const int first = schedule.block_of(unit);
  const int last = schedule.block_of(unit + schedule.k_tiles - 1);
  if (first == last) return;
  wait_for_prerequisite();

  const ChannelPair channels = load_channels<T>(p, n + lane / 4);
  const auto* partial =
      static_cast<const float4*>(p.workspace) + fragment_index(0, per_tile, fragment, lane);
  const int64_t slot_stride = per_tile * 32;
  float sum[1][1][4] = {};
#pragma unroll 8
  for (int b = first; b <= last; ++b) {
    add_fragment(sum[0][0], partial[schedule.slot(b, tile, b == first) * slot_stride]);
  }
  store_output<T>(p, m, n, sum, [&](int, int) { return channels; });
}

cudaError_t launch_split_sum(const Int8LinearParams& params, const LinearPlan& plan,
                             cudaStream_t stream) {
  const GemmSchedule schedule =
      gemm_schedule(params, plan.block_m, plan.block_n, plan.block_k, plan.num_blocks);
  const int64_t tiles = int64_t{schedule.tiles_m} * schedule.tiles_n;
  const int64_t fragments = tiles * (plan.block_m / 8) * (plan.block_n / 16);
  const auto kernel = params.dtype == DType::kFloat16 ? int8_linear_split_sum_kernel<__half>
                                                      : int8_linear_split_sum_kernel<__nv_bfloat16>;
  const dim3 grid(static_cast<unsigned>(ceil_div(fragments, kSplitSumWarps)));
  return launch_kernel(kernel, grid, 32 * kSplitSumWarps, 0, plan.dependent_launch, stream, params,
                       schedule, plan.block_m, plan.block_n);
}

}  // namespace flashint8::cuda
