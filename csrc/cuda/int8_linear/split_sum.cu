// Adds the partial sums of a product whose k was split over blocks, in the order of the splits, and
// writes the output. One warp a fragment (16 channels x 8 rows); it reads 512 contiguous bytes a
// split, a lane its own four sums, in the layout gemm.cuh wrote.
#include <cuda_runtime.h>

#include "epilogue.cuh"
#include "launch.cuh"
#include "variants.h"

namespace flashint8::cuda {

constexpr int kSplitSumWarps = 4;

template <typename T>
__global__ void __launch_bounds__(32 * kSplitSumWarps)
    int8_linear_split_sum_kernel(const __grid_constant__ Int8LinearParams p, int block_m,
                                 int block_n, int num_splits) {
  const int lane = threadIdx.x % 32;
  const int fragments_m = block_m / 8, per_tile = fragments_m * (block_n / 16);
  const int64_t tiles_m = ceil_div(p.m, block_m), num_tiles = tiles_m * ceil_div(p.n, block_n);
  const int64_t index = int64_t{blockIdx.x} * kSplitSumWarps + threadIdx.x / 32;
  const int64_t tile = index / per_tile;
  const int fragment = static_cast<int>(index - tile * per_tile);
  if (tile >= num_tiles) return;
  const int64_t tile_n = tile / tiles_m, tile_m = tile - tile_n * tiles_m;
  const int64_t m = tile_m * block_m + fragment % fragments_m * 8;
  const int64_t n = tile_n * block_n + fragment / fragments_m * 16;
  if (m >= p.m || n >= p.n) return;

  const auto* partial = static_cast<const float4*>(p.workspace) +
                        fragment_index(0, num_tiles, tile, per_tile, fragment, lane);
  const int64_t split_stride = num_tiles * per_tile * 32;
  ChannelPair channels;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int64_t channel = n + lane / 4 + 8 * h;
    channels.scale[h] = channel < p.n ? p.weight_scale[channel] : 0.0f;
    channels.bias[h] = channel < p.n ? load_bias<T>(p.bias, channel) : 0.0f;
  }
  float sum[4] = {};
#pragma unroll 4
  for (int s = 0; s < num_splits; ++s) {
    const float4 v = partial[s * split_stride];
    sum[0] += v.x;
    sum[1] += v.y;
    sum[2] += v.z;
    sum[3] += v.w;
  }
  OutputTile<T>(p, m, n, lane).store(0, 0, sum, channels);
}

cudaError_t launch_split_sum(const Int8LinearParams& params, const LinearPlan& plan,
                             cudaStream_t stream) {
  const int64_t tiles = ceil_div(params.m, plan.block_m) * ceil_div(params.n, plan.block_n);
  const int64_t fragments = tiles * (plan.block_m / 8) * (plan.block_n / 16);
  const auto kernel = params.dtype == DType::kFloat16 ? int8_linear_split_sum_kernel<__half>
                                                      : int8_linear_split_sum_kernel<__nv_bfloat16>;
  kernel<<<static_cast<unsigned>(ceil_div(fragments, kSplitSumWarps)), 32 * kSplitSumWarps, 0,
           stream>>>(params, plan.block_m, plan.block_n, plan.num_splits);
  return cudaGetLastError();
}

}  // namespace flashint8::cuda
