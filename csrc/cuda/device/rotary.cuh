// The rotation of rotary embedding (Su et al., arXiv:2104.09864). One place, and each rounding
// spelled out: whatever kernel rotates an element gives the same bits.
#pragma once

#include <cstdint>

#include "convert.cuh"

namespace flashint8::cuda {

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
