// Launches the decode kernel, and the merge of its splits. Included by the instantiations only.
#pragma once

#include "../function_attributes.cuh"
#include "../launch_kernel.cuh"
#include "combine_kernel.cuh"
#include "decode_kernel.cuh"
#include "launch.h"

namespace flashint8::cuda {

template <typename T, int kHeadDim, bool kVectorized>
cudaError_t launch_decode(const AttentionParams& params, const AttentionPlan& plan,
                          cudaStream_t stream) {
  using Traits = DecodeTraits<T, kHeadDim, kVectorized>;
  constexpr auto kKernel = &decode_kernel<Traits>;
  const int shared_bytes = static_cast<int>(plan.shared_bytes);
  const cudaError_t allowed = allow_shared_memory<kKernel>(shared_bytes);
  if (allowed != cudaSuccess) return allowed;
  DecodeArgs args;
  args.params = params;
  args.pack = plan.pack;
  args.num_m_blocks = static_cast<int>(ceil_div(plan.pack * params.seq_len_q, Traits::kRows));
  args.num_splits = plan.num_splits;
  args.num_warps = plan.num_warps;
  args.early_trigger = plan.early_trigger;
  if (params.append != nullptr) args.append = *params.append;
  args.params.append = nullptr;  // the host's
  const int64_t rows = params.batch * params.num_heads * params.seq_len_q;
  const int64_t blocks =
      args.num_splits * args.num_m_blocks * params.batch * params.num_heads / plan.pack;
  if (blocks > INT32_MAX || rows > INT32_MAX) return cudaErrorInvalidConfiguration;
  const cudaError_t launched =
      launch_kernel(kKernel, static_cast<unsigned>(blocks), 32 * plan.num_warps, shared_bytes,
                    plan.dependent_launch, stream, args);
  if (launched != cudaSuccess || args.num_splits == 1) return launched;
  return launch_kernel(&combine_kernel<T, kHeadDim>, static_cast<unsigned>(rows), kCombineThreads,
                       0, plan.dependent_launch, stream, args);
}

}  // namespace flashint8::cuda
