// Launches one variant of the prefill kernel. Included by the instantiations only.
#pragma once

#include <algorithm>
#include <cmath>

#include "../function_attributes.cuh"
#include "../launch_kernel.cuh"
#include "launch.h"
#include "prefill_kernel.cuh"

namespace flashint8::cuda {

template <typename T, int kIndex>
cudaError_t launch_prefill(const AttentionParams& params, const AttentionPlan& plan,
                           cudaStream_t stream) {
  constexpr PrefillVariant kVariant = kPrefillVariants[kIndex];
  constexpr auto kKernel = &prefill_kernel<T, kIndex>;
  const cudaError_t allowed = allow_shared_memory<kKernel>(kVariant.shared_bytes());
  if (allowed != cudaSuccess) return allowed;
  PrefillArgs args{};
  args.params = params;
  args.num_m_blocks = static_cast<int>(ceil_div(params.seq_len_q, kVariant.block_m));
  args.section = heads_per_section(params);
  args.early_trigger = plan.early_trigger;
  if (params.fp16_accumulate) {
    args.query_factor = std::exp2(std::min(0.0f, std::floor(std::log2(std::abs(params.scale)))));
    if (params.scale == 0.0f) args.query_factor = 1.0f;
    args.params.scale /= args.query_factor;
  }
  const int64_t blocks = args.num_m_blocks * params.num_heads * params.batch;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  return launch_kernel(kKernel, static_cast<unsigned>(blocks), kVariant.threads(),
                       kVariant.shared_bytes(), plan.dependent_launch, stream, args);
}

}  // namespace flashint8::cuda
