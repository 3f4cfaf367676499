// The activations of int8_linear, on fp32 values in registers. Each is a few units in fp32's last
// place from the exact one, of negative y too, where the forms with 1 + erf and 1 + tanh cancel;
// NaN stays NaN.
#pragma once

#include "convert.cuh"
#include "flashint8/activation.h"

namespace flashint8::cuda {

// Terms kFirst and up of P(t), over t^kFirst.
template <int kFirst = 0>
__device__ __forceinline__ float gelu_tail(float t) {
  constexpr float kTerm = kGeluTail[kFirst];
  if constexpr (kFirst + 1 < kGeluTerms) return fmaf(gelu_tail<kFirst + 1>(t), t, kTerm);
  return kTerm;
}

// max(y, 0) - a * Q(a); see kGeluTail.
__device__ __forceinline__ float gelu(float y) {
  const float a = fminf(fabsf(y), kGeluEnd);
  const float t = __fdividef(1.0f, fmaf(kGeluStep, a, 1.0f));
  const float tail = gelu_tail(t) * t * exp2_approx(a * a * kGeluExponent);
  return fmaf(-a, tail, y < 0.0f ? 0.0f : y);
}

// Of a gated activation, what it does to the gate.
template <Activation kActivation>
__device__ __forceinline__ float activate(float y) {
  if constexpr (kActivation == Activation::kNone) return y;
  if constexpr (kActivation == Activation::kGelu) return gelu(y);
  const float slope = kActivation == Activation::kGeluTanh
                          ? fmaf(y * y, kGeluTanhCurve, kGeluTanhSlope)
                          : kSiluSlope;
  return __fdividef(y, 1.0f + exp2_approx(y * slope));
}

__device__ __forceinline__ float activate(float y, Activation activation) {
  switch (activation) {
    case Activation::kNone: return y;
    case Activation::kGelu: return activate<Activation::kGelu>(y);
    case Activation::kGeluTanh: return activate<Activation::kGeluTanh>(y);
    default: return activate<Activation::kSilu>(y);
  }
}

}  // namespace flashint8::cuda
