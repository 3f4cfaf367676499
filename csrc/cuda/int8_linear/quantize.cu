// Per-channel quantisation: one block a row (rows blockIdx.x, + gridDim.x, ...), twice over the
// row: the largest absolute value, then the rounded quotients. Any strides, element loads.
#include <cuda_runtime.h>

#include <cfloat>

#include "../device/convert.cuh"
#include "flashint8/cuda.h"

namespace flashint8::cuda {

namespace {

__device__ __forceinline__ float to_float(float v) { return v; }
using cuda::to_float;

constexpr int kQuantizeThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kQuantizeThreads)
    quantize_per_channel_kernel(const QuantizeParams p, int32_t* bad_row) {
  __shared__ float warp_max[kQuantizeThreads / 32];
  for (int64_t row = blockIdx.x; row < p.n; row += gridDim.x) {
    const T* weight = static_cast<const T*>(p.weight) + row * p.row_stride;
    float largest = 0.0f;
    bool finite = true;
    for (int64_t k = threadIdx.x; k < p.k; k += kQuantizeThreads) {
      const float magnitude = fabsf(to_float(weight[k * p.col_stride]));
      finite = finite && magnitude <= FLT_MAX;  // false for NaN too
      largest = fmaxf(largest, magnitude);
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
    }
    if (threadIdx.x % 32 == 0) warp_max[threadIdx.x / 32] = largest;
    finite = __syncthreads_and(finite);
#pragma unroll
    for (int w = 0; w < kQuantizeThreads / 32; ++w) largest = fmaxf(largest, warp_max[w]);

    const float scale = finite ? __fdiv_rn(largest, 127.0f) : 0.0f;
    if (threadIdx.x == 0) {
      p.scale[row] = scale;
      if (!finite) atomicMin(bad_row, static_cast<int32_t>(min(row, int64_t{INT32_MAX})));
    }
    for (int64_t k = threadIdx.x; k < p.k; k += kQuantizeThreads) {
      float q = 0.0f;
      if (scale > 0.0f) {
        q = rintf(__fdiv_rn(to_float(weight[k * p.col_stride]), scale));
        q = fminf(fmaxf(q, -127.0f), 127.0f);
      }
      p.quantized[row * p.k + k] = static_cast<int8_t>(q);
    }
    __syncthreads();  // warp_max is free again
  }
}

}  // namespace

cudaError_t launch_quantize_per_channel(const QuantizeParams& params, int32_t* bad_row,
                                        cudaStream_t stream) {
  constexpr int64_t kMaxBlocks = 1 << 20;
  const auto blocks = static_cast<unsigned>(params.n < kMaxBlocks ? params.n : kMaxBlocks);
  const auto kernel = params.dtype == DType::kFloat32 ? quantize_per_channel_kernel<float>
                      : params.dtype == DType::kFloat16
                          ? quantize_per_channel_kernel<__half>
                          : quantize_per_channel_kernel<__nv_bfloat16>;
  kernel<<<blocks, kQuantizeThreads, 0, stream>>>(params, bad_row);
  return cudaGetLastError();
}

}  // namespace flashint8::cuda
