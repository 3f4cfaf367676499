// The first largest column of each row: blocks share a row and leave a key each, then one block a
// row takes the largest key and counts up the row's position. A key is a value's bits in the order
// of the values, and below them the column counted from the end: the largest key is the first of
// the largest values.
#include "../device/dependent_launch.cuh"
#include "../launch_kernel.cuh"
#include "chunk.cuh"
#include "flashint8/cuda.h"

namespace flashint8::cuda {
namespace {

constexpr int kThreads = 256;
using Key = unsigned long long;

__device__ __forceinline__ Key key_of(float value, int64_t column) {
  const uint32_t bits = __float_as_uint(value + 0.0f);  // -0 is 0
  const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  // A NaN is never the largest: 0 is under every value's bits.
  return (Key{isnan(value) ? 0u : ordered} << 32) | (0xffffffffu - static_cast<uint32_t>(column));
}

// The largest key of the block, in thread 0.
__device__ __forceinline__ Key block_max(Key key) {
  __shared__ Key partial[kThreads / 32];
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    key = max(key, __shfl_xor_sync(0xffffffffu, key, offset));
  }
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = key;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < kThreads / 32; ++i) key = max(key, partial[i]);
  }
  return key;
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    argmax_pieces_kernel(const __grid_constant__ ArgmaxParams p) {
  const T* row = static_cast<const T*>(p.x) + blockIdx.x * p.x_stride;
  wait_for_prerequisite();
  allow_dependent_launch();
  Key best = 0;
  const int64_t whole = p.columns / kWidth * kWidth;
  for (int64_t i = kWidth * (int64_t{blockIdx.y} * kThreads + threadIdx.x); i < whole;
       i += int64_t{kWidth} * gridDim.y * kThreads) {
    Chunk<T, kWidth> chunk;
    chunk.load(row + i);
    float x[kWidth];
    chunk.unpack(x);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) best = max(best, key_of(x[j], i + j));
  }
  const int64_t left = whole + threadIdx.x;
  if (blockIdx.y == 0 && left < p.columns) best = max(best, key_of(to_float(row[left]), left));
  best = block_max(best);
  if (threadIdx.x == 0) {
    static_cast<Key*>(p.workspace)[int64_t{blockIdx.x} * gridDim.y + blockIdx.y] = best;
  }
}

__global__ void __launch_bounds__(kThreads)
    argmax_row_kernel(const __grid_constant__ ArgmaxParams p, const int pieces) {
  const Key* keys = static_cast<const Key*>(p.workspace) + int64_t{blockIdx.x} * pieces;
  wait_for_prerequisite();
  allow_dependent_launch();
  const int piece = static_cast<int>(threadIdx.x);
  const bool counts = piece == 0 && p.positions != nullptr;
  const int position = counts ? p.positions[blockIdx.x] : 0;
  const Key best = block_max(piece < pieces ? keys[piece] : 0);
  if (piece == 0) p.out[blockIdx.x] = 0xffffffffu - static_cast<uint32_t>(best);
  if (counts) p.positions[blockIdx.x] = position + 1;
}

template <typename T>
cudaError_t launch(const ArgmaxParams& p, const Card& card, cudaStream_t stream) {
  const bool wide = is_aligned(p.x) && (p.rows == 1 || p.x_stride % kWide == 0);
  const int pieces = static_cast<int>(argmax_pieces(p));
  const bool dependent = waits_on_device(card);
  const cudaError_t status =
      launch_kernel(wide ? &argmax_pieces_kernel<T, kWide> : &argmax_pieces_kernel<T, 1>,
                    row_grid(p.rows, pieces), kThreads, 0, dependent, stream, p);
  if (status != cudaSuccess) return status;
  return launch_kernel(&argmax_row_kernel, row_grid(p.rows, 1), kThreads, 0, dependent, stream, p,
                       pieces);
}

}  // namespace

cudaError_t launch_argmax(const ArgmaxParams& params, const Card& card, cudaStream_t stream) {
  return params.dtype == DType::kFloat16 ? launch<__half>(params, card, stream)
                                         : launch<__nv_bfloat16>(params, card, stream);
}

}  // namespace flashint8::cuda
