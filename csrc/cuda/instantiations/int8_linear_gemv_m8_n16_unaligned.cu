#include "../int8_linear/gemv.cuh"

namespace flashint8::cuda {

static_assert(kGemvTiles[4].block_m == 8 && kGemvTiles[4].block_n == 16);
static_assert(!kGemvTiles[4].vectorized);
template cudaError_t launch_gemv<4>(const Int8LinearParams&, const LinearPlan&, cudaStream_t);

}  // namespace flashint8::cuda
