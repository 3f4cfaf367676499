// Rows 0, 5, 10 of kPrefillVariants.
#include "../attention/prefill_launch.cuh"

namespace flashint8::cuda {

template cudaError_t launch_prefill<__nv_bfloat16, 0>(const AttentionParams&, const AttentionPlan&,
                                                      cudaStream_t);
template cudaError_t launch_prefill<__nv_bfloat16, 5>(const AttentionParams&, const AttentionPlan&,
                                                      cudaStream_t);
template cudaError_t launch_prefill<__nv_bfloat16, 10>(const AttentionParams&, const AttentionPlan&,
                                                       cudaStream_t);

}  // namespace flashint8::cuda
