#include "decoder_args.h"

#include <algorithm>
#include <cmath>

namespace flashint8::ops {
namespace {

// Contiguous; dimensions of one element may have any stride.
void check_dense(const char* what, const TensorView& t) {
  int64_t step = 1;
  for (int64_t d = t.ndim - 1; d >= 0; --d) {
    if (t.sizes[d] > 1 && t.strides[d] != step) {
      fail(what, " must be contiguous, got stride ", t.strides[d], " in dimension ", d);
    }
    step *= t.sizes[d];
  }
}

}  // namespace

AddNormCall prepare_add_norm(const Tensor& residual_tensor, const std::optional<Tensor>& x_tensor,
                             const Tensor& weight_tensor, const std::optional<Tensor>& bias_tensor,
                             double eps, bool rms) {
  const TensorView residual = view(residual_tensor), weight = view(weight_tensor);
  AddNormParams p;
  if (residual.ndim < 1) fail("add_norm_: residual must have at least 1 dimension, got 0");
  p.dtype = check_float_dtype("add_norm_: residual", residual);
  check_last_dim_contiguous("add_norm_: residual", residual);
  p.rows = row_count(residual);
  p.columns = residual.sizes[residual.ndim - 1];
  if (x_tensor) {
    const TensorView x = view(*x_tensor);
    check_like("add_norm_: x", x, "residual", residual);
    if (!std::equal(x.sizes, x.sizes + x.ndim, residual.sizes, residual.sizes + residual.ndim)) {
      fail("add_norm_: x must have residual's shape ", shape_text(residual), ", got ",
           shape_text(x));
    }
    check_last_dim_contiguous("add_norm_: x", x);
    if (p.rows > 0) p.x_rows = row_layout("add_norm_: x", x);
    p.x = x.data;
  }
  check_like("add_norm_: weight", weight, "residual", residual);
  check_vector("add_norm_: weight", weight, p.columns);
  p.weight = weight.data;
  if (bias_tensor) {
    const TensorView bias = view(*bias_tensor);
    check_like("add_norm_: bias", bias, "residual", residual);
    check_vector("add_norm_: bias", bias, p.columns);
    p.bias = bias.data;
  }
  if (!(eps >= 0) || !std::isfinite(eps)) {
    fail("add_norm_: eps must be finite and at least 0, got ", eps);
  }
  check_written("add_norm_: residual", residual);
  if (p.rows > 0) p.residual_rows = row_layout("add_norm_: residual", residual);
  p.eps = static_cast<float>(eps);
  p.rms = rms;
  p.residual = residual_tensor.mutable_data_ptr();
  AddNormCall call{.params = p,
                   .out = empty_contiguous(residual.ndim, residual.sizes, residual.dtype, residual),
                   .residual = residual};
  call.params.out = call.out.mutable_data_ptr();
  return call;
}

SiluMulCall prepare_silu_mul(const Tensor& gate_up_tensor) {
  const TensorView gate_up = view(gate_up_tensor);
  SiluMulParams p;
  if (gate_up.ndim < 1) fail("silu_mul: gate_up must have at least 1 dimension, got 0");
  p.dtype = check_float_dtype("silu_mul: gate_up", gate_up);
  check_last_dim_contiguous("silu_mul: gate_up", gate_up);
  const int64_t last = gate_up.ndim - 1;
  if (gate_up.sizes[last] % 2 != 0) {
    fail("silu_mul: gate_up must have an even last dimension, got ", gate_up.sizes[last]);
  }
  p.rows = row_count(gate_up);
  p.columns = gate_up.sizes[last] / 2;
  if (p.rows > 0) p.gate_up_rows = row_layout("silu_mul: gate_up", gate_up);
  p.gate_up = gate_up.data;

  constexpr int64_t kMaxDims = 64;
  int64_t sizes[kMaxDims];
  if (gate_up.ndim > kMaxDims) {
    fail("silu_mul: gate_up has ", gate_up.ndim, " dimensions, at most 64 are taken");
  }
  for (int64_t d = 0; d < last; ++d) sizes[d] = gate_up.sizes[d];
  sizes[last] = p.columns;
  SiluMulCall call{.params = p,
                   .out = empty_contiguous(gate_up.ndim, sizes, gate_up.dtype, gate_up),
                   .gate_up = gate_up};
  call.params.out = call.out.mutable_data_ptr();
  return call;
}

EmbedCall prepare_embed(const Tensor& out_tensor, const Tensor& tokens_tensor,
                        const Tensor& weight_tensor, const Tensor& weight_scale,
                        const std::optional<Tensor>& positions_tensor,
                        const std::optional<Tensor>& position_weight) {
  const TensorView out = view(out_tensor), tokens = view(tokens_tensor);
  const TensorView weight = view(weight_tensor), scale = view(weight_scale);
  EmbedParams p;
  if (out.ndim != 3) fail("embed_: out must have 3 dimensions (B, T, C), got ", out.ndim);
  p.dtype = check_float_dtype("embed_: out", out);
  check_dense("embed_: out", out);
  p.batch = out.sizes[0];
  p.seq_len = out.sizes[1];
  p.columns = out.sizes[2];
  check_typed("embed_: tokens", tokens, aoti_torch_dtype_int64(), "out", out);
  check_shape("embed_: tokens", tokens, {p.batch, p.seq_len});
  check_typed("embed_: weight", weight, aoti_torch_dtype_int8(), "out", out);
  check_shape("embed_: weight", weight, {kAny, p.columns});
  check_dense("embed_: weight", weight);
  p.vocabulary = weight.sizes[0];
  if (p.vocabulary < 1) fail("embed_: weight must have at least 1 row, got 0");
  check_typed("embed_: weight_scale", scale, aoti_torch_dtype_float32(), "out", out);
  check_vector("embed_: weight_scale", scale, p.vocabulary);
  if (positions_tensor.has_value() != position_weight.has_value()) {
    fail("embed_: positions and position_weight must both be given, or neither");
  }
  if (position_weight) {
    const TensorView positions = view(*positions_tensor), table = view(*position_weight);
    check_typed("embed_: positions", positions, aoti_torch_dtype_int32(), "out", out);
    check_shape("embed_: positions", positions, {p.batch});
    check_like("embed_: position_weight", table, "out", out);
    check_shape("embed_: position_weight", table, {kAny, p.columns});
    check_dense("embed_: position_weight", table);
    p.num_positions = table.sizes[0];
    if (p.num_positions < 1) fail("embed_: position_weight must have at least 1 row, got 0");
    p.positions = static_cast<const int32_t*>(positions.data);
    p.positions_stride = positions.strides[0];
    p.position_weight = table.data;
  }
  p.out = out_tensor.mutable_data_ptr();
  p.tokens = static_cast<const int64_t*>(tokens.data);
  p.token_stride_batch = tokens.strides[0];
  p.token_stride_seq = tokens.strides[1];
  p.weight = static_cast<const int8_t*>(weight.data);
  p.weight_scale = static_cast<const float*>(scale.data);
  return {.params = p, .out = out};
}

ArgmaxCall prepare_argmax(const Tensor& out_tensor, const Tensor& x_tensor,
                          const std::optional<Tensor>& positions_tensor) {
  const TensorView out = view(out_tensor), x = view(x_tensor);
  ArgmaxParams p;
  if (x.ndim != 2) fail("argmax_: x must have 2 dimensions (M, N), got ", x.ndim);
  p.dtype = check_float_dtype("argmax_: x", x);
  check_last_dim_contiguous("argmax_: x", x);
  if (x.sizes[1] < 1) fail("argmax_: x must have at least 1 column, got 0");
  check_typed("argmax_: out", out, aoti_torch_dtype_int64(), "x", x);
  check_shape("argmax_: out", out, {x.sizes[0], 1});
  check_dense("argmax_: out", out);
  if (positions_tensor) {
    const TensorView positions = view(*positions_tensor);
    check_typed("argmax_: positions", positions, aoti_torch_dtype_int32(), "x", x);
    check_shape("argmax_: positions", positions, {x.sizes[0]});
    check_dense("argmax_: positions", positions);
    p.positions = static_cast<int32_t*>(positions_tensor->mutable_data_ptr());
  }
  p.x = x.data;
  p.out = static_cast<int64_t*>(out_tensor.mutable_data_ptr());
  p.x_stride = x.strides[0];
  p.rows = x.sizes[0];
  p.columns = x.sizes[1];
  return {.params = p, .x = x};
}

}  // namespace flashint8::ops
