// Row 1 of kSm90PrefillTiles.
#include "../attention/prefill_sm90_launch.cuh"

namespace flashint8::cuda {

template cudaError_t launch_prefill_sm90<__half, 1>(const AttentionParams&, const AttentionPlan&,
                                                    cudaStream_t);

}  // namespace flashint8::cuda
