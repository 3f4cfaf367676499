// Conversions between fp32 and the 16-bit types, and the fast exponential.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace flashint8::cuda {

// Two fp32 values as one register of T, the first in the low half; round to nearest even.
template <typename T>
__device__ __forceinline__ uint32_t pack2(float low, float high);

template <>
__device__ __forceinline__ uint32_t pack2<__half>(float low, float high) {
  const __half2 value = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&value);
}

template <>
__device__ __forceinline__ uint32_t pack2<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 value = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&value);
}

// Back from a register of two.
__device__ __forceinline__ float2 unpack2_half(uint32_t pair) {
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}

__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// 2^x by the special-function unit, about 2 ulp; results under 2^-126 become 0; 2^-inf is 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// The same on the units that multiply and add: 2^x for x < 128, relative error under 1e-4 (a third
// of fp16's rounding); 0 at -inf and under 2^-127; NaN stays one. x = n + f, |f| <= 1/2, and a
// polynomial for 2^f whose largest relative error on that range is the least.
__device__ __forceinline__ float exp2_polynomial(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: a sum with it has n in its low bits
  asm("max.NaN.f32 %0, %0, 0fC2FE0000;\n" : "+f"(x));  // -127
  const float shifted = x + kRound;
  const float f = x - (shifted - kRound);
  float y = fmaf(f, 0.0551716021f, 0.2426111312f);
  y = fmaf(y, f, 0.6932609948f);
  y = fmaf(y, f, 0.9999280731f);
  return y * __int_as_float((__float_as_int(shifted) << 23) + 0x3f800000);
}

}  // namespace flashint8::cuda
