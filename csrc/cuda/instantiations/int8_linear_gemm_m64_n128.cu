#include "../int8_linear/gemm.cuh"

namespace flashint8::cuda {

static_assert(kGemmTiles[3].block_m == 64 && kGemmTiles[3].block_n == 128);
template cudaError_t launch_gemm<3>(const Int8LinearParams&, const LinearPlan&, cudaStream_t);

}  // namespace flashint8::cuda
