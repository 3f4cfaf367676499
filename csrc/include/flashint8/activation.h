// What int8_linear can apply to its sums before they are rounded, and the numbers that every device
// computes it with.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace flashint8 {

// kSiluMul is gated: of each pair of channels (2i, 2i + 1) comes one, silu(y[2i]) * y[2i + 1].
enum class Activation : int32_t { kNone = 0, kGelu = 1, kGeluTanh = 2, kSilu = 3, kSiluMul = 4 };

// By the names that torch.nn.functional.gelu and silu have for them; std::invalid_argument for
// another name.
inline Activation parse_activation(const std::string& name) {
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "silu") return Activation::kSilu;
  if (name == "silu_mul") return Activation::kSiluMul;
  throw std::invalid_argument(
      "int8_linear: activation must be gelu, gelu_tanh, silu or silu_mul, got '" + name + "'");
}

// silu(y) = y / (1 + 2^(y * slope)) with slope = -log2(e). So is gelu's tanh form: with
// (1 + tanh(u)) / 2 = 1 / (1 + e^-2u) its slope is kGeluTanhSlope + kGeluTanhCurve * y^2, and
// nothing cancels where y is negative.
constexpr float kSiluSlope = -1.4426950408889634f;
constexpr float kGeluTanhSlope = -2.302208198144325f;   // -2 sqrt(2 / pi) log2(e)
constexpr float kGeluTanhCurve = -0.1029432395800235f;  // 0.044715 times that

// gelu(y) = max(y, 0) - a * Q(a), a = |y|, with the normal distribution's upper tail Q:
//   Q(a) = erfc(a / sqrt(2)) / 2 = 2^(kGeluExponent * a^2) * t * P(t), t = 1 / (1 + kGeluStep * a)
// P of degree 8, fitted for the least largest relative error (2.4e-8) on 0 <= a <= kGeluEnd, from
// where on the product is 0 in fp32. Relative to the tail too: nothing cancels where y is negative.
constexpr float kGeluStep = 0.27f;
constexpr float kGeluEnd = 14.0f;
constexpr float kGeluExponent = -0.7213475204444817f;  // -log2(e) / 2
constexpr int kGeluTerms = 9;
constexpr float kGeluTail[kGeluTerms] = {
    // of t^0 first
    0.10772018879652023f, 0.10755050927400589f,  0.10175919532775879f,
    0.0722401812672615f,  0.10739968717098236f,  -0.06862135231494904f,
    0.16929171979427338f, -0.12625543773174286f, 0.028915314003825188f};

}  // namespace flashint8
