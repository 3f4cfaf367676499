#include "../int8_linear/gemm.cuh"

namespace flashint8::cuda {

static_assert(kGemmTiles[2].block_m == 64 && kGemmTiles[2].block_n == 64);
template cudaError_t launch_gemm<2>(const Int8LinearParams&, const LinearPlan&, cudaStream_t);

}  // namespace flashint8::cuda
