// Merges the splits of the decode kernel: a block a row, a thread two columns of every kGroups-th
// split, then the groups in their order, so that the bits are the same on every run.
//
// Little work between two waits: what counts is the way from the last split's end to the output.
// All that does not come from the splits is computed before the wait, and what does is asked for at
// once.
#pragma once

#include "../device/convert.cuh"
#include "../device/dependent_launch.cuh"
#include "partial.cuh"
#include "softmax.cuh"

namespace flashint8::cuda {

constexpr int kCombineThreads = 256;

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kCombineThreads)
    combine_kernel(const __grid_constant__ DecodeArgs args) {
  constexpr int kPairs = kHeadDim / 2;
  constexpr int kGroups = kCombineThreads / kPairs;
  constexpr int kAtOnce = 8;  // splits of a group
  __shared__ float2 states[kGroups][kPairs], outputs[kGroups][kPairs];
  const AttentionParams& params = args.params;
  const int pair = static_cast<int>(threadIdx.x) % kPairs;
  const int group = static_cast<int>(threadIdx.x) / kPairs;
  const int column = 2 * pair;
  const int row = static_cast<int>(blockIdx.x);
  const int seq_len_q = static_cast<int>(params.seq_len_q);
  const int num_heads = static_cast<int>(params.num_heads);
  const int query = row % seq_len_q;
  const int head = row / seq_len_q % num_heads;
  const int batch = row / seq_len_q / num_heads;
  T* out = static_cast<T*>(params.out) + batch * params.out_stride.batch +
           head * params.out_stride.head + query * params.out_stride.seq + column;
  const bool writes = group == 0 && column < params.head_dim;
  const PartialLayout partial{params.batch * params.num_heads * params.seq_len_q, args.num_splits,
                              kHeadDim};
  const auto* workspace = static_cast<const float*>(params.workspace);
  const auto read = [&](int64_t i) { return *reinterpret_cast<const float2*>(workspace + i); };
  if (args.early_trigger) allow_dependent_launch();
  wait_for_prerequisite();
  allow_dependent_launch();

  MergedPair merged{kNoMaximum, 0.0f, {0.0f, 0.0f}};
  for (int first = group; first < args.num_splits; first += kAtOnce * kGroups) {
    const int count = (args.num_splits - first + kGroups - 1) / kGroups;
    const MergedPair part = merge_pairs<kAtOnce>(
        count, [&](int i) { return read(partial.state(first + i * kGroups, row)); },
        [&](int i) { return read(partial.output(first + i * kGroups, row) + column); });
    merged = merge_pairs<2>(
        2, [&](int i) { return i == 0 ? merged.state() : part.state(); },
        [&](int i) { return i == 0 ? merged.x : part.x; });
  }
  states[group][pair] = merged.state();
  outputs[group][pair] = merged.x;
  __syncthreads();

  if (!writes) return;
  merged = merge_pairs<kGroups>(
      kGroups, [&](int i) { return states[i][pair]; }, [&](int i) { return outputs[i][pair]; });
  const float inverse = inverse_sum(merged.sum);
  *reinterpret_cast<uint32_t*>(out) = pack2<T>(merged.x.x * inverse, merged.x.y * inverse);
  if (threadIdx.x == 0 && params.lse != nullptr) {
    params.lse[row] = log_sum_exp(merged.top, merged.sum);
  }
}

}  // namespace flashint8::cuda
