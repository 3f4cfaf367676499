// The rotation of rotary embedding (Su et al., arXiv:2104.09864). One place, and each rounding
// spelled out: whatever kernel rotates an element gives the same bits.
#pragma once

#include <cstdint>

#include "convert.cuh"
#include "flashint8/decoder.h"

namespace flashint8::cuda {

// The cosines of a position's angles, and behind them the sines.
__device__ __forceinline__ const float* table_row(const RopeAppendParams& p, int64_t position) {
  return p.cos_sin + clamp_to(position, 0, p.table_rows - 1) * p.cos_sin_stride;
}

// (first, second) turned by one angle.
__device__ __forceinline__ void rotate_pair(float cos, float sin, float& first, float& second) {
  const float x = first, y = second;
  first = __fmaf_rn(x, cos, -__fmul_rn(y, sin));
  second = __fmaf_rn(y, cos, __fmul_rn(x, sin));
}

// Two neighbours of each, as registers of T.
template <typename T>
__device__ __forceinline__ void rotate_words(float2 cos, float2 sin, uint32_t& first,
                                             uint32_t& second) {
  float2 a = unpack2(first, T{}), b = unpack2(second, T{});
  rotate_pair(cos.x, sin.x, a.x, b.x);
  rotate_pair(cos.y, sin.y, a.y, b.y);
  first = pack2<T>(a.x, a.y);
  second = pack2<T>(b.x, b.y);
}

}  // namespace flashint8::cuda
