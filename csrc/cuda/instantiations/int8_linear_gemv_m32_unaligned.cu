// Row 3 of kGemvTiles.
#include "../int8_linear/gemv.cuh"

namespace flashint8::cuda {

template cudaError_t launch_gemv<3>(const Int8LinearParams&, const LinearPlan&, cudaStream_t);

}  // namespace flashint8::cuda
