// Rows 8, 9 of kPrefillVariants.
#include "../attention/prefill_launch.cuh"

namespace flashint8::cuda {

template cudaError_t launch_prefill<__nv_bfloat16, 8>(const AttentionParams&, const AttentionPlan&,
                                                      cudaStream_t);
template cudaError_t launch_prefill<__nv_bfloat16, 9>(const AttentionParams&, const AttentionPlan&,
                                                      cudaStream_t);

}  // namespace flashint8::cuda
