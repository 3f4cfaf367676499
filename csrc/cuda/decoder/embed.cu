// Rows of an int8 embedding, times their scale, plus a position's row: blockIdx.x is a token.
#include "../device/dependent_launch.cuh"
#include "../launch_kernel.cuh"
#include "chunk.cuh"
#include "flashint8/cuda.h"

namespace flashint8::cuda {
namespace {

constexpr int kThreads = 128;

__device__ __forceinline__ int64_t clamp_index(int64_t i, int64_t count) {
  return max(int64_t{0}, min(count - 1, i));
}

template <int kWidth>
__device__ __forceinline__ void load_int8(const int8_t* p, float (&x)[kWidth]) {
  if constexpr (kWidth == 1) {
    x[0] = *p;
  } else {
    static_assert(kWidth == 8);
    const int2 bits = *reinterpret_cast<const int2*>(p);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      x[j] = static_cast<int8_t>(bits.x >> (8 * j));
      x[4 + j] = static_cast<int8_t>(bits.y >> (8 * j));
    }
  }
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads) embed_kernel(const __grid_constant__ EmbedParams p) {
  const int64_t b = blockIdx.x / p.seq_len, t = blockIdx.x % p.seq_len;
  T* out = static_cast<T*>(p.out) + blockIdx.x * p.columns;
  wait_for_prerequisite();
  allow_dependent_launch();
  const int64_t token =
      clamp_index(p.tokens[b * p.token_stride_batch + t * p.token_stride_seq], p.vocabulary);
  const int8_t* row = p.weight + token * p.columns;
  const float scale = p.weight_scale[token];
  const T* position = nullptr;
  if (p.position_weight != nullptr) {
    const int64_t place = clamp_index(p.positions[b * p.positions_stride] + t, p.num_positions);
    position = static_cast<const T*>(p.position_weight) + place * p.columns;
  }
  for (int64_t i = kWidth * (int64_t{blockIdx.y} * kThreads + threadIdx.x); i < p.columns;
       i += int64_t{kWidth} * gridDim.y * kThreads) {
    float x[kWidth], y[kWidth] = {};
    load_int8<kWidth>(row + i, x);
    Chunk<T, kWidth> chunk;
    if (position != nullptr) {
      chunk.load(position + i);
      chunk.unpack(y);
    }
#pragma unroll
    for (int j = 0; j < kWidth; ++j) y[j] = fmaf(x[j], scale, y[j]);
    chunk.pack(y);
    chunk.store(out + i);
  }
}

template <typename T>
cudaError_t launch(const EmbedParams& p, const Card& card, cudaStream_t stream) {
  const bool wide = p.columns % kWide == 0 && is_aligned(p.out) && is_aligned(p.weight) &&
                    is_aligned(p.position_weight);
  const int64_t chunks = wide ? p.columns / kWide : p.columns;
  return launch_kernel(wide ? &embed_kernel<T, kWide> : &embed_kernel<T, 1>,
                       row_grid(p.batch * p.seq_len, ceil_div(chunks, kThreads)), kThreads, 0,
                       waits_on_device(card), stream, p);
}

}  // namespace

cudaError_t launch_embed(const EmbedParams& params, const Card& card, cudaStream_t stream) {
  return params.dtype == DType::kFloat16 ? launch<__half>(params, card, stream)
                                         : launch<__nv_bfloat16>(params, card, stream);
}

}  // namespace flashint8::cuda
