#include "../int8_linear/gemv.cuh"

namespace flashint8::cuda {

static_assert(kGemvTiles[1].block_m == 8 && kGemvTiles[1].block_n == 32);
static_assert(kGemvTiles[1].vectorized);
template cudaError_t launch_gemv<1>(const Int8LinearParams&, const LinearPlan&, cudaStream_t);

}  // namespace flashint8::cuda
