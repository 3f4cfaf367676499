// Row 0 of kGemmTiles.
#include "../int8_linear/gemm.cuh"

namespace flashint8::cuda {

template cudaError_t launch_gemm<0>(const Int8LinearParams&, const LinearPlan&, cudaStream_t);

}  // namespace flashint8::cuda
