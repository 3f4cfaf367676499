// From a plan to its kernel.
#include <utility>

#include "flashint8/cuda.h"
#include "launch.h"

namespace flashint8::cuda {
namespace {

using PrefillLauncher = cudaError_t (*)(const AttentionParams&, const AttentionPlan&, cudaStream_t);

template <size_t kCount>
cudaError_t launch_variant(const PrefillLauncher (&launchers)[kCount],
                           const AttentionParams& params, const AttentionPlan& plan,
                           cudaStream_t stream) {
  if (plan.variant < 0 || plan.variant >= static_cast<int>(kCount)) return cudaErrorInvalidValue;
  return launchers[plan.variant](params, plan, stream);
}

template <typename T, size_t... kIndices>
cudaError_t prefill(const AttentionParams& params, const AttentionPlan& plan, cudaStream_t stream,
                    std::index_sequence<kIndices...>) {
  static constexpr PrefillLauncher kLaunchers[] = {&launch_prefill<T, int{kIndices}>...};
  return launch_variant(kLaunchers, params, plan, stream);
}

#ifdef FLASHINT8_SM90A
template <typename T, size_t... kIndices>
cudaError_t prefill_sm90(const AttentionParams& params, const AttentionPlan& plan,
                         cudaStream_t stream, std::index_sequence<kIndices...>) {
  static constexpr PrefillLauncher kLaunchers[] = {&launch_prefill_sm90<T, int{kIndices}>...};
  return launch_variant(kLaunchers, params, plan, stream);
}
#endif

template <typename T>
cudaError_t decode(const AttentionParams& params, const AttentionPlan& plan, cudaStream_t stream) {
  switch (plan.head_dim) {
    case 64:
      return plan.vectorized ? launch_decode<T, 64, true>(params, plan, stream)
                             : cudaErrorInvalidValue;
    case 128:
      return plan.vectorized ? launch_decode<T, 128, true>(params, plan, stream)
                             : launch_decode<T, 128, false>(params, plan, stream);
    case 256:
      return plan.vectorized ? launch_decode<T, 256, true>(params, plan, stream)
                             : launch_decode<T, 256, false>(params, plan, stream);
    default: return cudaErrorInvalidValue;
  }
}

template <typename T>
cudaError_t launch(const AttentionParams& params, const AttentionPlan& plan, cudaStream_t stream) {
  if (plan.kernel == AttentionKernel::kDecode) return decode<T>(params, plan, stream);
#ifdef FLASHINT8_SM90A
  if (plan.kernel == AttentionKernel::kPrefillSm90) {
    return prefill_sm90<T>(params, plan, stream, std::make_index_sequence<kNumSm90PrefillTiles>());
  }
#endif
  if (plan.kernel != AttentionKernel::kPrefill) return cudaErrorInvalidValue;
  return prefill<T>(params, plan, stream, std::make_index_sequence<kNumPrefillVariants>());
}

}  // namespace

cudaError_t launch_attention_fwd(const AttentionParams& params, const AttentionPlan& plan,
                                 cudaStream_t stream) {
  if (params.append != nullptr && !plan.appends) return cudaErrorInvalidValue;
  // The kernels take a window wider than every distance for none.
  AttentionParams bounded = params;
  const int64_t everything = params.seq_len_q + params.seq_len_kv + 1;
  if (params.window <= 0 || params.window > everything) bounded.window = everything;
  if (plan.dtype == DType::kFloat16) return launch<__half>(bounded, plan, stream);
  if (plan.dtype == DType::kBFloat16) return launch<__nv_bfloat16>(bounded, plan, stream);
  return cudaErrorInvalidValue;
}

}  // namespace flashint8::cuda
