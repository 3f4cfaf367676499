// Rows 6, 7 of kPrefillVariants.
#include "../attention/prefill_launch.cuh"

namespace flashint8::cuda {

template cudaError_t launch_prefill<__nv_bfloat16, 6>(const AttentionParams&, const AttentionPlan&,
                                                      cudaStream_t);
template cudaError_t launch_prefill<__nv_bfloat16, 7>(const AttentionParams&, const AttentionPlan&,
                                                      cudaStream_t);

}  // namespace flashint8::cuda
