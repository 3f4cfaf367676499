#include "../int8_linear/gemm.cuh"

namespace flashint8::cuda {

static_assert(kGemmTiles[0].block_m == 32 && kGemmTiles[0].block_n == 64);
template cudaError_t launch_gemm<0>(const Int8LinearParams&, const LinearPlan&, cudaStream_t);

}  // namespace flashint8::cuda
