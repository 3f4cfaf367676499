// exp2, tanh and the activations on vectors.
#pragma once

#include "flashint8/activation.h"
#include "simd.h"

namespace flashint8::cpu {
namespace {

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kInfinity = __builtin_inff();

// 2^x for x <= 120, relative error 1e-7 (a polynomial of degree 5 on [-1/2, 1/2], fitted for the
// least largest relative error); 0 below kLowestPower; NaN stays NaN.
FLASHINT8_INLINE Vec exp2(Vec x) {
  x = max(set1(kLowestPower), x);  // this order keeps NaN
  const Vec n = round_even(x);
  const Vec f = sub(x, n);
  Vec p = set1(0.001327647129073739f);
  p = fma(p, f, set1(0.009675540961325169f));
  p = fma(p, f, set1(0.05550713092088699f));
  p = fma(p, f, set1(0.24022120237350464f));
  p = fma(p, f, set1(0.6931469440460205f));
  p = fma(p, f, set1(1.0f));
  return scale_by_power(p, n);
}

// 1 - 2 / (e^2x + 1), and for small x, where that loses its leading digits, the odd series to x^7.
// Relative error 5e-7.
FLASHINT8_INLINE Vec tanh(Vec x) {
  const Vec limit = set1(15.0f);  // tanh is 1 in fp32 from 9.01
  const Vec bounded = min(limit, max(sub(zero(), limit), x));
  const Vec e = exp2(mul(bounded, set1(2.0f * kLog2e)));
  const Vec large = sub(set1(1.0f), div(set1(2.0f), add(e, set1(1.0f))));
  const Vec square = mul(x, x);
  Vec series = fma(square, set1(-17.0f / 315.0f), set1(2.0f / 15.0f));
  series = fma(square, series, set1(-1.0f / 3.0f));
  const Vec small = fma(mul(x, square), series, x);
  return select_less(abs(x), set1(0.25f), small, large);
}

// x / (1 + 2^(x * slope)). exp2 takes up to 120; from there on the result is under 1e-34.
FLASHINT8_INLINE Vec sigmoid_product(Vec x, Vec slope) {
  return div(x, add(set1(1.0f), exp2(min(set1(120.0f), mul(x, slope)))));
}

FLASHINT8_INLINE Vec silu(Vec x) { return sigmoid_product(x, set1(kSiluSlope)); }

FLASHINT8_INLINE Vec gelu_tanh(Vec x) {
  return sigmoid_product(x, fma(mul(x, x), set1(kGeluTanhCurve), set1(kGeluTanhSlope)));
}

// max(x, 0) - a * Q(a); see kGeluTail. NaN stays NaN.
FLASHINT8_INLINE Vec gelu(Vec x) {
  const Vec a = min(set1(kGeluEnd), abs(x));
  const Vec t = div(set1(1.0f), fma(a, set1(kGeluStep), set1(1.0f)));
  Vec tail = set1(kGeluTail[kGeluTerms - 1]);
  FLASHINT8_UNROLL
  for (int i = kGeluTerms - 2; i >= 0; --i) tail = fma(tail, t, set1(kGeluTail[i]));
  tail = mul(mul(tail, t), exp2(mul(mul(a, a), set1(kGeluExponent))));
  return sub(select_less(x, zero(), zero(), x), mul(a, tail));
}

// Of a gated activation, what it does to the gate. Not inlined: one copy serves every loop.
__attribute__((noinline)) Vec activate(Vec x, Activation activation) {
  switch (activation) {
    case Activation::kGelu: return gelu(x);
    case Activation::kGeluTanh: return gelu_tanh(x);
    case Activation::kSilu:
    case Activation::kSiluMul: return silu(x);
    default: return x;
  }
}

}  // namespace
}  // namespace flashint8::cpu
