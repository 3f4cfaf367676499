// Descriptions of tensors for the copy engine (TMA, sm_90).
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace flashint8::cuda {

// A tensor of `rank` dimensions, the innermost first and contiguous; byte_strides[i] is that of
// dimension i + 1, a positive multiple of 16. Boxes of `box` elements; what lies outside the tensor
// arrives as zeros.
cudaError_t describe_tensor(CUtensorMap* map, CUtensorMapDataType type, CUtensorMapSwizzle swizzle,
                            const void* data, int rank, const int64_t* sizes,
                            const int64_t* byte_strides, const int* box);

}  // namespace flashint8::cuda
