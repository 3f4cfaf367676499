// Launches the decode kernel, and the merge of its splits. Included by the instantiations only.
#pragma once

#include "../function_attributes.cuh"
#include "combine_kernel.cuh"
#include "decode_kernel.cuh"
#include "launch.h"

namespace flashint8::cuda {

// The merge is launched while the splits still run, where the card can (sm_90): it waits for them
// on the device, and its launch costs nothing.
template <typename T, int kHeadDim>
cudaError_t launch_combine(const DecodeArgs& args, bool overlap, cudaStream_t stream) {
  const int64_t rows = args.params.batch * args.params.num_heads * args.params.seq_len_q;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(rows));
  config.blockDim = dim3(32 * kCombineWarps);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = overlap ? 1 : 0;
  return cudaLaunchKernelEx(&config, &combine_kernel<T, kHeadDim>, args);
}

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
  args.num_m_blocks =
      static_cast<int>((plan.pack * params.seq_len_q + Traits::kRows - 1) / Traits::kRows);
  args.num_splits = plan.num_splits;
  args.num_warps = plan.num_warps;
  const int64_t blocks =
      args.num_splits * args.num_m_blocks * params.batch * params.num_heads / plan.pack;
  if (blocks > INT32_MAX || params.batch * params.num_heads * params.seq_len_q > INT32_MAX) {
    return cudaErrorInvalidConfiguration;
  }
  kKernel<<<static_cast<unsigned>(blocks), 32 * plan.num_warps, shared_bytes, stream>>>(args);
  const cudaError_t launched = cudaGetLastError();
  if (launched != cudaSuccess || args.num_splits == 1) return launched;
  return launch_combine<T, kHeadDim>(args, plan.overlapped_combine, stream);
}

}  // namespace flashint8::cuda
