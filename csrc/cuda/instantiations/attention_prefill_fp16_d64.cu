// Rows 3, 4 of kPrefillVariants.
#include "../attention/prefill_launch.cuh"

namespace flashint8::cuda {

template cudaError_t launch_prefill<__half, 3>(const AttentionParams&, const AttentionPlan&,
                                               cudaStream_t);
template cudaError_t launch_prefill<__half, 4>(const AttentionParams&, const AttentionPlan&,
                                               cudaStream_t);

}  // namespace flashint8::cuda
