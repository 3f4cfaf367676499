// Rotary embedding of q and k, and k and v into the cache: blockIdx.x is a token, a thread works on
// two chunks of a head, which hold the partners of one rotation.
#include <climits>

#include "../device/dependent_launch.cuh"
#include "../device/rotary.cuh"
#include "../launch_kernel.cuh"
#include "chunk.cuh"
#include "flashint8/cuda.h"

namespace flashint8::cuda {
namespace {

constexpr int kThreads = 128;

// Where head h of token (b, t) lies.
__device__ __forceinline__ int64_t head_offset(const AttentionStrides& s, int b, int64_t t, int h) {
  return b * s.batch + h * s.head + t * s.seq;
}

// a and b turned by kWidth angles. Interleaved: neighbours in (a, b) are partners; else a[i], b[i].
template <int kWidth>
__device__ __forceinline__ void rotate(const float (&cos)[kWidth], const float (&sin)[kWidth],
                                       bool interleaved, float (&a)[kWidth], float (&b)[kWidth]) {
  if constexpr (kWidth > 1) {
    if (interleaved) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        float* x = i < kWidth / 2 ? a : b;
        const int even = 2 * i % kWidth;
        rotate_pair(cos[i], sin[i], x[even], x[even + 1]);
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) rotate_pair(cos[i], sin[i], a[i], b[i]);
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    rope_append_kernel(const __grid_constant__ RopeAppendParams p) {
  const auto seq_len = static_cast<unsigned>(p.seq_len);
  const int batch = static_cast<int>(blockIdx.x / seq_len);
  const auto t = static_cast<int64_t>(blockIdx.x % seq_len);
  const int head_dim = static_cast<int>(p.head_dim), rotary_dim = static_cast<int>(p.rotary_dim);
  const int units = (head_dim + 2 * kWidth - 1) / (2 * kWidth);
  const int num_q = static_cast<int>(p.num_heads), num_kv = static_cast<int>(p.num_kv_heads);
  const int items = (num_q + 2 * num_kv) * units;
  wait_for_prerequisite();
  allow_dependent_launch();

  const int64_t slot = p.positions[batch * p.positions_stride] + t;
  const bool has_slot = slot >= 0 && slot < p.slots;
  const float* cos_row = table_row(p, slot);
  for (int item = blockIdx.y * kThreads + threadIdx.x; item < items; item += gridDim.y * kThreads) {
    const int head = item / units, unit = item - head * units;
    const bool is_q = head < num_q, is_v = head >= num_q + num_kv;
    const bool rotated = !is_v && 2 * kWidth * unit < rotary_dim;
    if (is_q ? !rotated && p.q == p.q_out : !has_slot) continue;
    const T* from;
    T* to;
    if (is_q) {
      from = static_cast<const T*>(p.q) + head_offset(p.q_stride, batch, t, head);
      to = static_cast<T*>(p.q_out) + head_offset(p.q_out_stride, batch, t, head);
    } else if (is_v) {
      const int h = head - num_q - num_kv;
      from = static_cast<const T*>(p.v) + head_offset(p.v_stride, batch, t, h);
      to = static_cast<T*>(p.v_cache) + head_offset(p.v_cache_stride, batch, slot, h);
    } else {
      const int h = head - num_q;
      from = static_cast<const T*>(p.k) + head_offset(p.k_stride, batch, t, h);
      to = static_cast<T*>(p.k_cache) + head_offset(p.k_cache_stride, batch, slot, h);
    }
    const bool halves = rotated && !p.interleaved;
    const int low = halves ? kWidth * unit : 2 * kWidth * unit;
    const int high = halves ? low + rotary_dim / 2 : low + kWidth;
    const bool has_high = high < head_dim;
    Chunk<T, kWidth> a, b = {};
    a.load(from + low);
    if (has_high) b.load(from + high);
    if (rotated) {
      float cos[kWidth], sin[kWidth], x[kWidth], y[kWidth];
      load_floats(cos_row + kWidth * unit, cos);
      load_floats(cos_row + rotary_dim / 2 + kWidth * unit, sin);
      a.unpack(x);
      b.unpack(y);
      rotate(cos, sin, p.interleaved, x, y);
      a.pack(x);
      b.pack(y);
    }
    a.store(to + low);
    if (has_high) b.store(to + high);
  }
}

bool heads_are_aligned(const AttentionStrides& s, const RopeAppendParams& p, int64_t heads,
                       int64_t tokens) {
  return (p.batch == 1 || s.batch % kWide == 0) && (heads <= 1 || s.head % kWide == 0) &&
         (tokens <= 1 || s.seq % kWide == 0);
}

// Every chunk of every head lies on 16 bytes, and a rotation's partners in two whole chunks.
bool is_wide(const RopeAppendParams& p) {
  return p.head_dim % kWide == 0 && p.rotary_dim % (2 * kWide) == 0 && is_aligned(p.q) &&
         is_aligned(p.q_out) && is_aligned(p.k) && is_aligned(p.v) && is_aligned(p.k_cache) &&
         is_aligned(p.v_cache) && is_aligned(p.cos_sin) && p.cos_sin_stride % 4 == 0 &&
         heads_are_aligned(p.q_stride, p, p.num_heads, p.seq_len) &&
         heads_are_aligned(p.q_out_stride, p, p.num_heads, p.seq_len) &&
         heads_are_aligned(p.k_stride, p, p.num_kv_heads, p.seq_len) &&
         heads_are_aligned(p.v_stride, p, p.num_kv_heads, p.seq_len) &&
         heads_are_aligned(p.k_cache_stride, p, p.num_kv_heads, p.slots) &&
         heads_are_aligned(p.v_cache_stride, p, p.num_kv_heads, p.slots);
}

template <typename T, int kWidth>
cudaError_t launch(const RopeAppendParams& p, const Card& card, cudaStream_t stream) {
  const int64_t items = (p.num_heads + 2 * p.num_kv_heads) * ceil_div(p.head_dim, 2 * kWidth);
  if (p.head_dim > INT_MAX / 2 || items > INT_MAX / 2) return cudaErrorInvalidConfiguration;
  return launch_kernel(&rope_append_kernel<T, kWidth>,
                       row_grid(p.batch * p.seq_len, ceil_div(items, kThreads)), kThreads, 0,
                       waits_on_device(card), stream, p);
}

template <typename T>
cudaError_t launch(const RopeAppendParams& p, const Card& card, cudaStream_t stream) {
  return is_wide(p) ? launch<T, kWide>(p, card, stream) : launch<T, 1>(p, card, stream);
}

}  // namespace

cudaError_t launch_rope_append(const RopeAppendParams& params, const Card& card,
                               cudaStream_t stream) {
  return params.dtype == DType::kFloat16 ? launch<__half>(params, card, stream)
                                         : launch<__nv_bfloat16>(params, card, stream);
}

}  // namespace flashint8::cuda
