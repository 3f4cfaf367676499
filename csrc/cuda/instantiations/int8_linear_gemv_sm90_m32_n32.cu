// Row 1 of kGemvSm90Tiles.
#include "../int8_linear/gemv_sm90.cuh"

namespace flashint8::cuda {

template cudaError_t launch_gemv_sm90<1>(const Int8LinearParams&, const LinearPlan&, cudaStream_t);

}  // namespace flashint8::cuda
