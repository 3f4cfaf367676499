// The residual stream's addition and norm, a block a row. A row of up to kKept chunks a thread
// stays in registers; a longer one, or one that is not aligned, is read again. A thread has a
// second chunk in rows that are too long for one each: between two waits it would be another trip
// to L2.
#include "../device/dependent_launch.cuh"
#include "../launch_kernel.cuh"
#include "chunk.cuh"
#include "flashint8/cuda.h"

namespace flashint8::cuda {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kKept = 2;
// The kernel behind a short row's norm may come before its own wait is over: a product's first
// weights are then on their way while the kernel ahead ends. Measured in whole models; of 3072
// columns and more they are in that kernel's way.
constexpr int64_t kEarlyUpTo = 2048;

// The sums of the block's warps; zeros where it has none.
struct WarpSums {
  float of[kMaxThreads / 32];

  __device__ __forceinline__ void clear() {
    if (threadIdx.x < kMaxThreads / 32) of[threadIdx.x] = 0.0f;
  }

  // The same sum in every thread, added in one order. All threads of the block, once.
  __device__ __forceinline__ float add(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    if (threadIdx.x % 32 == 0) of[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kMaxThreads / 32; w += 4) {
      const float4 four = *reinterpret_cast<const float4*>(of + w);
      sum += (four.x + four.y) + (four.z + four.w);
    }
    return sum;
  }
};

// fn(i, chunk) for the chunks of this thread: i counts them, and is 0 where they are not kept.
template <bool kInRegisters, typename Fn>
__device__ __forceinline__ void for_chunks(int64_t chunks, Fn fn) {
  if constexpr (kInRegisters) {
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      const int64_t chunk = threadIdx.x + i * blockDim.x;
      if (chunk < chunks) fn(i, chunk);
    }
  } else {
    for (int64_t chunk = threadIdx.x; chunk < chunks; chunk += blockDim.x) fn(0, chunk);
  }
}

template <typename T, int kWidth, bool kInRegisters>
__global__ void __launch_bounds__(kMaxThreads)
    add_norm_kernel(const __grid_constant__ AddNormParams p, const bool early_trigger) {
  constexpr int kChunks = kInRegisters ? kKept : 1;
  __shared__ __align__(16) WarpSums sums, squares;
  const int64_t chunks = p.columns / kWidth;
  T* residual = static_cast<T*>(p.residual) + row_offset(p.residual_rows, blockIdx.x);
  const T* added = static_cast<const T*>(p.x) + row_offset(p.x_rows, blockIdx.x);
  T* out = static_cast<T*>(p.out) + blockIdx.x * p.columns;
  const auto* weight = static_cast<const T*>(p.weight);
  const auto* bias = static_cast<const T*>(p.bias);
  for_chunks<kInRegisters>(chunks, [&](int, int64_t chunk) {
    prefetch_l2_line(weight + kWidth * chunk);
    if (bias != nullptr) prefetch_l2_line(bias + kWidth * chunk);
  });
  const float per_column = 1.0f / static_cast<float>(p.columns);
  sums.clear();
  squares.clear();
  __syncthreads();
  if (early_trigger) allow_dependent_launch();
  wait_for_prerequisite();
  allow_dependent_launch();

  float row[kChunks][kWidth];
  Chunk<T, kWidth> scale[kChunks], shift[kChunks] = {};
  float sum = 0.0f;
  for_chunks<kInRegisters>(chunks, [&](int i, int64_t chunk) {
    Chunk<T, kWidth> stream;
    stream.load(residual + kWidth * chunk);
    if constexpr (kInRegisters) {  // asked for now, used after the sums
      scale[i].load(weight + kWidth * chunk);
      if (bias != nullptr) shift[i].load(bias + kWidth * chunk);
    }
    if (p.x != nullptr) {
      Chunk<T, kWidth> x;
      x.load(added + kWidth * chunk);
      float term[kWidth];
      x.unpack(term);
      stream.unpack(row[i]);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) row[i][j] += term[j];
      stream.pack(row[i]);
      stream.store(residual + kWidth * chunk);
    }
    stream.unpack(row[i]);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum += p.rms ? row[i][j] * row[i][j] : row[i][j];
  });
  const auto again = [&](int i, int64_t chunk) {
    if constexpr (!kInRegisters) {
      Chunk<T, kWidth> stream;
      stream.load(residual + kWidth * chunk);
      stream.unpack(row[i]);
    }
  };
  const float total = sums.add(sum);
  float mean = 0.0f, square = total * per_column;
  if (!p.rms) {
    mean = total / static_cast<float>(p.columns);  // exact where all columns are the same
    float centred_sum = 0.0f;
    for_chunks<kInRegisters>(chunks, [&](int i, int64_t chunk) {
      again(i, chunk);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const float centred = row[i][j] - mean;
        centred_sum += centred * centred;
      }
    });
    square = squares.add(centred_sum) * per_column;
  }
  const float inverse = rsqrtf(square + p.eps);
  for_chunks<kInRegisters>(chunks, [&](int i, int64_t chunk) {
    again(i, chunk);
    if constexpr (!kInRegisters) {
      scale[i].load(weight + kWidth * chunk);
      if (bias != nullptr) shift[i].load(bias + kWidth * chunk);
    }
    float w[kWidth], b[kWidth];
    scale[i].unpack(w);
    shift[i].unpack(b);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) w[j] = (row[i][j] - mean) * inverse * w[j] + b[j];
    Chunk<T, kWidth> y;
    y.pack(w);
    y.store(out + kWidth * chunk);
  });
}

bool is_wide(const AddNormParams& p) {
  return p.columns % kWide == 0 && is_aligned(p.residual) && is_aligned(p.x) &&
         is_aligned(p.weight) && is_aligned(p.bias) && is_aligned(p.out) &&
         is_aligned(p.residual_rows) && (p.x == nullptr || is_aligned(p.x_rows));
}

template <typename T>
cudaError_t launch(const AddNormParams& p, const Card& card, cudaStream_t stream) {
  const bool wide = is_wide(p);
  const int64_t chunks = wide ? p.columns / kWide : p.columns;
  const bool kept = wide && chunks <= kKept * kMaxThreads;
  const int64_t warps = ceil_div(chunks, 32);
  const int threads = warps < kMaxThreads / 32 ? static_cast<int>(32 * warps) : kMaxThreads;
  const auto kernel = kept   ? &add_norm_kernel<T, kWide, true>
                      : wide ? &add_norm_kernel<T, kWide, false>
                             : &add_norm_kernel<T, 1, false>;
  return launch_kernel(kernel, row_grid(p.rows, 1), threads, 0, waits_on_device(card), stream, p,
                       p.columns <= kEarlyUpTo);
}

}  // namespace

cudaError_t launch_add_norm(const AddNormParams& params, const Card& card, cudaStream_t stream) {
  return params.dtype == DType::kFloat16 ? launch<__half>(params, card, stream)
                                         : launch<__nv_bfloat16>(params, card, stream);
}

}  // namespace flashint8::cuda
