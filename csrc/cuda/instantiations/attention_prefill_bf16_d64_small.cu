// Rows 1, 2 of kPrefillVariants.
#include "../attention/prefill_launch.cuh"

namespace flashint8::cuda {

template cudaError_t launch_prefill<__nv_bfloat16, 1>(const AttentionParams&, const AttentionPlan&,
                                                      cudaStream_t);
template cudaError_t launch_prefill<__nv_bfloat16, 2>(const AttentionParams&, const AttentionPlan&,
                                                      cudaStream_t);

}  // namespace flashint8::cuda
