// Rows 8, 9 of kPrefillVariants.
#include "../attention/prefill_launch.cuh"

namespace flashint8::cuda {

template cudaError_t launch_prefill<__half, 8>(const AttentionParams&, const AttentionPlan&,
                                               cudaStream_t);
template cudaError_t launch_prefill<__half, 9>(const AttentionParams&, const AttentionPlan&,
                                               cudaStream_t);

}  // namespace flashint8::cuda
