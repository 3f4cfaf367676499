#include "../int8_linear/gemm.cuh"

namespace flashint8::cuda {

static_assert(kGemmTiles[5].block_m == 128 && kGemmTiles[5].block_n == 256);
template cudaError_t launch_gemm<5>(const Int8LinearParams&, const LinearPlan&, cudaStream_t);

}  // namespace flashint8::cuda
