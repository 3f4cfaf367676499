#include "../int8_linear/gemm.cuh"

namespace flashint8::cuda {

static_assert(kGemmTiles[4].block_m == 128 && kGemmTiles[4].block_n == 128);
template cudaError_t launch_gemm<4>(const Int8LinearParams&, const LinearPlan&, cudaStream_t);

}  // namespace flashint8::cuda
