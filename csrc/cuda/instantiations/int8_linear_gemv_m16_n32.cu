#include "../int8_linear/gemv.cuh"

namespace flashint8::cuda {

static_assert(kGemvTiles[2].block_m == 16 && kGemvTiles[2].block_n == 32);
static_assert(kGemvTiles[2].vectorized);
template cudaError_t launch_gemv<2>(const Int8LinearParams&, const LinearPlan&, cudaStream_t);

}  // namespace flashint8::cuda
