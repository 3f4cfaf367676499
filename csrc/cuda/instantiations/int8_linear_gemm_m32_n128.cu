#include "../int8_linear/gemm.cuh"

namespace flashint8::cuda {

static_assert(kGemmTiles[1].block_m == 32 && kGemmTiles[1].block_n == 128);
template cudaError_t launch_gemm<1>(const Int8LinearParams&, const LinearPlan&, cudaStream_t);

}  // namespace flashint8::cuda
