// Rows 6, 7 of kPrefillVariants.
#include "../attention/prefill_launch.cuh"

namespace flashint8::cuda {

template cudaError_t launch_prefill<__half, 6>(const AttentionParams&, const AttentionPlan&,
                                               cudaStream_t);
template cudaError_t launch_prefill<__half, 7>(const AttentionParams&, const AttentionPlan&,
                                               cudaStream_t);

}  // namespace flashint8::cuda
