#include "linear_args.h"

namespace flashint8::ops {
namespace {

void check_weight(const TensorView& weight, const TensorView& x) {
  check_same_device("int8_linear: weight", weight, "x", x);
  if (weight.dtype != aoti_torch_dtype_int8()) {
    fail("int8_linear: weight must be int8, got ", dtype_name(weight.dtype));
  }
  if (weight.ndim != 2) {
    fail("int8_linear: weight must have 2 dimensions (N, K), got ", weight.ndim);
  }
  if (weight.sizes[1] != x.sizes[x.ndim - 1]) {
    fail("int8_linear: x has ", x.sizes[x.ndim - 1], " features, weight has ", weight.sizes[1]);
  }
  check_last_dim_contiguous("int8_linear: weight", weight);
}

Activation check_activation(const std::string& name, int64_t n) {
  const Activation activation = parse_activation(name);
  if (activation == Activation::kSiluMul && n % 2 != 0) {
    fail(
        "int8_linear: activation silu_mul needs an even number of weight rows (gate and up in "
        "turn), got ",
        n);
  }
  return activation;
}

}  // namespace

Int8LinearCall prepare_int8_linear(const Tensor& x_tensor, const Tensor& weight_tensor,
                                   const Tensor& scale_tensor,
                                   const std::optional<Tensor>& bias_tensor,
                                   const std::optional<std::string>& activation) {
  const TensorView x = view(x_tensor), weight = view(weight_tensor), scale = view(scale_tensor);
  Int8LinearParams p;
  if (x.ndim < 1) fail("int8_linear: x must have at least 1 dimension, got 0");
  p.dtype = check_float_dtype("int8_linear: x", x);
  check_weight(weight, x);
  p.n = weight.sizes[0];
  p.k = weight.sizes[1];
  check_last_dim_contiguous("int8_linear: x", x);
  check_typed("int8_linear: weight_scale", scale, aoti_torch_dtype_float32(), "x", x);
  check_vector("int8_linear: weight_scale", scale, p.n);
  if (bias_tensor) {
    const TensorView bias = view(*bias_tensor);
    check_like("int8_linear: bias", bias, "x", x);
    check_vector("int8_linear: bias", bias, p.n);
    p.bias = bias.data;
  }
  if (activation) p.activation = check_activation(*activation, p.n);
  p.m = row_count(x);
  if (p.m > 0) p.x_rows = row_layout("int8_linear: x", x);
  p.x = x.data;
  p.weight = static_cast<const int8_t*>(weight.data);
  p.weight_scale = static_cast<const float*>(scale.data);
  p.weight_stride = weight.strides[0];

  constexpr int64_t kMaxDims = 64;
  int64_t sizes[kMaxDims];
  if (x.ndim > kMaxDims) fail("int8_linear: x has ", x.ndim, " dimensions, at most 64 are taken");
  for (int64_t d = 0; d + 1 < x.ndim; ++d) sizes[d] = x.sizes[d];
  sizes[x.ndim - 1] = out_columns(p);
  Int8LinearCall call{.params = p, .out = empty_contiguous(x.ndim, sizes, x.dtype, x), .x = x};
  call.params.out = call.out.mutable_data_ptr();
  return call;
}

QuantizeCall prepare_quantize(const Tensor& weight_tensor) {
  const TensorView weight = view(weight_tensor);
  if (weight.ndim != 2) {
    fail("quantize_per_channel: weight must have 2 dimensions (N, K), got ", weight.ndim);
  }
  const std::optional<DType> dtype = float_dtype(weight.dtype);
  if (!dtype) {
    fail("quantize_per_channel: weight must be float16, bfloat16 or float32, got ",
         dtype_name(weight.dtype));
  }
  QuantizeCall call{.params = {},
                    .quantized = empty_contiguous(2, weight.sizes, aoti_torch_dtype_int8(), weight),
                    .scale = empty_contiguous(1, weight.sizes, aoti_torch_dtype_float32(), weight),
                    .weight = weight};
  call.params.weight = weight.data;
  call.params.quantized = static_cast<int8_t*>(call.quantized.mutable_data_ptr());
  call.params.scale = static_cast<float*>(call.scale.mutable_data_ptr());
  call.params.row_stride = weight.strides[0];
  call.params.col_stride = weight.strides[1];
  call.params.n = weight.sizes[0];
  call.params.k = weight.sizes[1];
  call.params.dtype = *dtype;
  return call;
}

void fail_non_finite(int64_t row) {
  fail("quantize_per_channel: weight has a non-finite value in row ", row);
}

}  // namespace flashint8::ops
