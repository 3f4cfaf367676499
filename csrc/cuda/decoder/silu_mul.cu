// silu(gate) * up: blockIdx.x is a row, a thread works on a chunk.
#include "../device/dependent_launch.cuh"
#include "../launch_kernel.cuh"
#include "chunk.cuh"
#include "flashint8/cuda.h"

namespace flashint8::cuda {
namespace {

constexpr int kThreads = 128;

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    silu_mul_kernel(const __grid_constant__ SiluMulParams p) {
  const T* gate = static_cast<const T*>(p.gate_up) + row_offset(p.gate_up_rows, blockIdx.x);
  const T* up = gate + p.columns;
  T* out = static_cast<T*>(p.out) + blockIdx.x * p.columns;
  wait_for_prerequisite();
  allow_dependent_launch();
  for (int64_t i = kWidth * (int64_t{blockIdx.y} * kThreads + threadIdx.x); i < p.columns;
       i += int64_t{kWidth} * gridDim.y * kThreads) {
    Chunk<T, kWidth> g, u;
    g.load(gate + i);
    u.load(up + i);
    float x[kWidth], y[kWidth];
    g.unpack(x);
    u.unpack(y);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) y[j] *= x[j] / (1.0f + __expf(-x[j]));
    u.pack(y);
    u.store(out + i);
  }
}

template <typename T>
cudaError_t launch(const SiluMulParams& p, const Card& card, cudaStream_t stream) {
  const bool wide = p.columns % kWide == 0 && is_aligned(p.gate_up) && is_aligned(p.out) &&
                    is_aligned(p.gate_up_rows);
  const int64_t chunks = wide ? p.columns / kWide : p.columns;
  return launch_kernel(wide ? &silu_mul_kernel<T, kWide> : &silu_mul_kernel<T, 1>,
                       row_grid(p.rows, ceil_div(chunks, kThreads)), kThreads, 0,
                       waits_on_device(card), stream, p);
}

}  // namespace

cudaError_t launch_silu_mul(const SiluMulParams& params, const Card& card, cudaStream_t stream) {
  return params.dtype == DType::kFloat16 ? launch<__half>(params, card, stream)
                                         : launch<__nv_bfloat16>(params, card, stream);
}

}  // namespace flashint8::cuda
