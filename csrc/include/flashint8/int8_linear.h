// The contract of the INT8 weight-only linear operator.
#pragma once

#include <cstdint>

#include "flashint8/activation.h"
#include "flashint8/types.h"

namespace flashint8 {

// y[m, n] = scale[n] * sum_k x[m, k] * weight[n, k] + bias[n], accumulated in fp32. out is
// activation(y), rounded once: (m, n), or with kSiluMul (m, n / 2), n even.
struct Int8LinearParams {
  const void* x = nullptr;              // (m, k) by x_rows, dtype, last dimension contiguous
  const int8_t* weight = nullptr;       // (n, k), rows weight_stride elements apart
  const float* weight_scale = nullptr;  // (n,) contiguous
  const void* bias = nullptr;           // (n,) contiguous, dtype; may be nullptr
  void* out = nullptr;                  // (m, n or n / 2) contiguous, dtype; all of it is written
  void* workspace = nullptr;            // plan.workspace_bytes, 16-byte aligned; nullptr where 0
  RowLayout x_rows;
  int64_t weight_stride = 0;
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  DType dtype = DType::kFloat16;
  Activation activation = Activation::kNone;
  // CUDA: no kernel that is still under way writes weight, weight_scale or bias. They may be read
  // before the kernel ahead in the stream has ended.
  bool weight_ready = false;
};

// Columns of out.
FLASHINT8_HOST_DEVICE constexpr int64_t out_columns(const Int8LinearParams& p) {
  return p.activation == Activation::kSiluMul ? p.n / 2 : p.n;
}

// Per-output-channel symmetric quantisation: scale[n] = max_k |w[n, k]| / 127,
// q[n, k] = clamp(round_half_even(w[n, k] / scale[n]), -127, 127); an all-zero row gives scale 0.
struct QuantizeParams {
  const void* weight = nullptr;  // (n, k), dtype, strides below
  int8_t* quantized = nullptr;   // (n, k) contiguous
  float* scale = nullptr;        // (n,) contiguous
  int64_t row_stride = 0;
  int64_t col_stride = 1;
  int64_t n = 0;
  int64_t k = 0;
  DType dtype = DType::kFloat32;
};

}  // namespace flashint8
