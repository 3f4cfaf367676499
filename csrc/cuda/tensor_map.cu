// The driver makes the descriptions; its function is looked up at run time, so that nothing is
// linked against the driver.
#include <cuda_runtime.h>

#include "tensor_map.h"

namespace flashint8::cuda {
namespace {

constexpr int kMaxRank = 5;

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &found);
#else
  const cudaError_t error =
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<Encode>(function);
}

}  // namespace

cudaError_t describe_tensor(CUtensorMap* map, CUtensorMapDataType type, CUtensorMapSwizzle swizzle,
                            const void* data, int rank, const int64_t* sizes,
                            const int64_t* byte_strides, const int* box) {
  static const Encode encode = find_encode();
  if (encode == nullptr) return cudaErrorNotSupported;
  if (rank < 1 || rank > kMaxRank) return cudaErrorInvalidValue;
  cuuint64_t all_sizes[kMaxRank], all_strides[kMaxRank];
  cuuint32_t all_box[kMaxRank], steps[kMaxRank];
  for (int i = 0; i < rank; ++i) {
    all_sizes[i] = static_cast<cuuint64_t>(sizes[i]);
    all_box[i] = static_cast<cuuint32_t>(box[i]);
    steps[i] = 1;
    if (i + 1 < rank) all_strides[i] = static_cast<cuuint64_t>(byte_strides[i]);
  }
  const CUresult result =
      encode(map, type, static_cast<cuuint32_t>(rank), const_cast<void*>(data), all_sizes,
             all_strides, all_box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace flashint8::cuda
