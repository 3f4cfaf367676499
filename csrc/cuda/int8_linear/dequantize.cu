// Weights to 16 bits, scale folded in, for the library's product.
//
// A thread converts 16 adjacent weights of a channel: a 16-byte read, two 16-byte writes. Rows are
// 16-byte aligned on both sides (the plan asks for it); the last piece of a row may be partial.
#include <cuda_runtime.h>

#include "../device/convert.cuh"
#include "../device/global_load.cuh"
#include "../device/linear_ptx.cuh"
#include "flashint8/cuda.h"
#include "variants.h"

namespace flashint8::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T>
__device__ __forceinline__ uint32_t scaled_pair(uint32_t word, int byte, float scale) {
  const auto low = static_cast<int8_t>(word >> (8 * byte));
  const auto high = static_cast<int8_t>(word >> (8 * byte + 8));
  return pack2<T>(low * scale, high * scale);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    dequantize_kernel(const __grid_constant__ Int8LinearParams p, int64_t first, int64_t count) {
  const int64_t pieces = ceil_div(p.k, 16);
  const uint64_t policy = l2_evict_first_policy();
  const int64_t piece = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t row = blockIdx.y;
  if (piece >= pieces || row >= count) return;
  const float scale = p.weight_scale[first + row];
  const int8_t* source = p.weight + (first + row) * p.weight_stride + 16 * piece;
  T* destination = static_cast<T*>(p.workspace) + row * p.k + 16 * piece;
  const int valid = static_cast<int>(min(p.k - 16 * piece, int64_t{16}));
  const uint4 w = valid == 16 ? load_streaming_16(source, policy) : load_partial_16(source, valid);
  const uint32_t words[4] = {w.x, w.y, w.z, w.w};
  if (valid == 16 && p.k % 8 == 0) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      reinterpret_cast<uint4*>(destination)[half] = make_uint4(
          scaled_pair<T>(words[2 * half], 0, scale), scaled_pair<T>(words[2 * half], 2, scale),
          scaled_pair<T>(words[2 * half + 1], 0, scale),
          scaled_pair<T>(words[2 * half + 1], 2, scale));
    }
  } else {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      if (i >= valid) break;
      destination[i] = from_float<T>(static_cast<int8_t>(words[i / 4] >> (8 * (i % 4))) * scale);
    }
  }
}

}  // namespace

cudaError_t launch_dequantize(const Int8LinearParams& params, int64_t first, int64_t count,
                              cudaStream_t stream) {
  constexpr int64_t kMaxGridY = 65535;
  const auto kernel = params.dtype == DType::kFloat16 ? dequantize_kernel<__half>
                                                      : dequantize_kernel<__nv_bfloat16>;
  const auto blocks = static_cast<unsigned>(ceil_div(ceil_div(params.k, 16), kThreads));
  Int8LinearParams part = params;
  for (int64_t done = 0; done < count; done += kMaxGridY) {
    const int64_t rows = count - done < kMaxGridY ? count - done : kMaxGridY;
    part.workspace = static_cast<uint16_t*>(params.workspace) + done * params.k;
    kernel<<<dim3(blocks, static_cast<unsigned>(rows)), kThreads, 0, stream>>>(part, first + done,
                                                                               rows);
  }
  return cudaGetLastError();
}

}  // namespace flashint8::cuda
