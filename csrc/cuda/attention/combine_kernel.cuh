// Merges the splits of the decode kernel: a block a row, its warps going round the splits, then the
// warps merged in their order, so that the bits are the same on every run.
#pragma once

#include "../device/convert.cuh"
#include "../device/dependent_launch.cuh"
#include "partial.cuh"
#include "softmax.cuh"

namespace flashint8::cuda {

constexpr int kCombineWarps = 8;

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(32 * kCombineWarps)
    combine_kernel(const __grid_constant__ DecodeArgs args) {
  constexpr int kPairs = (kHeadDim / 2 + 31) / 32;  // pairs of columns of a lane
  __shared__ float2 outputs[kCombineWarps][32 * kPairs];
  __shared__ float sums[kCombineWarps];
  const AttentionParams& params = args.params;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int64_t row = blockIdx.x;
  const PartialLayout partial{params.batch * params.num_heads * params.seq_len_q, args.num_splits,
                              kHeadDim};
  const auto* workspace = static_cast<const float*>(params.workspace);
  if (args.early_trigger) allow_dependent_launch();
  wait_for_prerequisite();
  allow_dependent_launch();

  // Every warp finds the maximum over all splits for itself: one round of reads.
  float top = kNoMaximum;
  for (int split = lane; split < args.num_splits; split += 32) {
    top = fmaxf(top, workspace[partial.state(split, row)]);
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
  }
  float sum = 0.0f;
  float2 x[kPairs] = {};
#pragma unroll 4
  for (int split = warp; split < args.num_splits; split += kCombineWarps) {
    const float2 state = *reinterpret_cast<const float2*>(workspace + partial.state(split, row));
    const float weight = exp2_approx(state.x - top);
    const float* output = workspace + partial.output(split, row);
    sum += weight * state.y;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int column = 2 * (lane + 32 * i);
      if (column < kHeadDim) {
        const float2 value = *reinterpret_cast<const float2*>(output + column);
        x[i].x += weight * value.x;
        x[i].y += weight * value.y;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kPairs; ++i) outputs[warp][lane + 32 * i] = x[i];
  if (lane == 0) sums[warp] = sum;
  __syncthreads();

  const int column = 2 * static_cast<int>(threadIdx.x);
  if (column >= params.head_dim) return;
  float total = 0.0f, x0 = 0.0f, x1 = 0.0f;
#pragma unroll
  for (int w = 0; w < kCombineWarps; ++w) {
    total += sums[w];
    x0 += outputs[w][threadIdx.x].x;
    x1 += outputs[w][threadIdx.x].y;
  }
  const int64_t query = row % params.seq_len_q;
  const int64_t head = row / params.seq_len_q % params.num_heads;
  const int64_t batch = row / params.seq_len_q / params.num_heads;
  T* out = static_cast<T*>(params.out) + batch * params.out_stride.batch +
           head * params.out_stride.head + query * params.out_stride.seq;
  const float inverse = inverse_sum(total);
  *reinterpret_cast<uint32_t*>(out + column) = pack2<T>(x0 * inverse, x1 * inverse);
  if (threadIdx.x == 0 && params.lse != nullptr) params.lse[row] = log_sum_exp(top, total);
}

}  // namespace flashint8::cuda
