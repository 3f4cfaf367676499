// Checks the arguments of int8_linear and quantize_per_channel, allocates their outputs and fills
// the kernels' params. Shared by the CPU and the CUDA ops.
#pragma once

#include <optional>
#include <string>

#include "flashint8/int8_linear.h"
#include "tensor_view.h"

namespace flashint8::ops {

struct Int8LinearCall {
  Int8LinearParams params;
  Tensor out;
  TensorView x;  // where to allocate a workspace
};

// Both throw std::invalid_argument, naming the argument, what was expected and what came.
Int8LinearCall prepare_int8_linear(const Tensor& x, const Tensor& weight,
                                   const Tensor& weight_scale, const std::optional<Tensor>& bias,
                                   const std::optional<std::string>& activation);

struct QuantizeCall {
  QuantizeParams params;
  Tensor quantized;
  Tensor scale;
  TensorView weight;
};

QuantizeCall prepare_quantize(const Tensor& weight);
[[noreturn]] void fail_non_finite(int64_t row);

}  // namespace flashint8::ops
