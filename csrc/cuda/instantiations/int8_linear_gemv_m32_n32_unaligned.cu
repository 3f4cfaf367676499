#include "../int8_linear/gemv.cuh"

namespace flashint8::cuda {

static_assert(kGemvTiles[5].block_m == 32 && kGemvTiles[5].block_n == 32);
static_assert(!kGemvTiles[5].vectorized);
template cudaError_t launch_gemv<5>(const Int8LinearParams&, const LinearPlan&, cudaStream_t);

}  // namespace flashint8::cuda
