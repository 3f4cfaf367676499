// Row 4 of kSm90Tiles.
#include "../int8_linear/launch_sm90.cuh"

namespace flashint8::cuda {

template cudaError_t launch_sm90<4>(const Int8LinearParams&, const LinearPlan&, cudaStream_t);

}  // namespace flashint8::cuda
