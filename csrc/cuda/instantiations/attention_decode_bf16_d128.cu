#include "../attention/decode_launch.cuh"

namespace flashint8::cuda {

template cudaError_t launch_decode<__nv_bfloat16, 128, true>(const AttentionParams&,
                                                             const AttentionPlan&, cudaStream_t);
template cudaError_t launch_decode<__nv_bfloat16, 128, false>(const AttentionParams&,
                                                              const AttentionPlan&, cudaStream_t);

}  // namespace flashint8::cuda
