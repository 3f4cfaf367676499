#include "decoder_args.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <string>

#include "attention_args.h"

namespace flashint8::ops {
namespace {

constexpr int64_t kAny = -1;

// "(2, *, 16)"
std::string expected_shape(std::initializer_list<int64_t> sizes) {
  std::string text;
  for (const int64_t size : sizes) {
    text += text.empty() ? "(" : ", ";
    text += size == kAny ? "*" : std::to_string(size);
  }
  return text + (sizes.size() == 1 ? ",)" : ")");
}

void check_shape(const char* what, const TensorView& t, std::initializer_list<int64_t> sizes) {
  bool same = t.ndim == static_cast<int64_t>(sizes.size());
  const int64_t* size = t.sizes;
  for (const int64_t expected : sizes) {
    if (!same) fail(what, " must have shape ", expected_shape(sizes), ", got ", shape_text(t));
    same = expected == kAny || *size == expected;
    ++size;
  }
  if (!same) fail(what, " must have shape ", expected_shape(sizes), ", got ", shape_text(t));
}

// What is written in place must not name an element twice, as an expanded tensor does.
void check_written(const char* what, const TensorView& t) {
  for (int64_t d = 0; d < t.ndim; ++d) {
    if (t.sizes[d] > 1 && t.strides[d] == 0) {
      fail(what, " is written in place and must not be expanded, got stride 0 in dimension ", d);
    }
  }
}

// (batch, heads, tokens, head_dim) as q.
void check_heads(const char* what, const TensorView& t, const TensorView& q, int64_t heads,
                 int64_t tokens) {
  check_like(what, t, "q", q);
  check_shape(what, t, {q.sizes[0], heads, tokens, q.sizes[3]});
  check_last_dim_contiguous(what, t);
}

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

// How messages begin. Literals: joining strings would cost every call.
struct RopeAppendNames {
  const char *q, *k, *v, *k_cache, *v_cache, *positions, *cos_sin;
};
constexpr RopeAppendNames kRopeAppend{"rope_append_: q",       "rope_append_: k",
                                      "rope_append_: v",       "rope_append_: k_cache",
                                      "rope_append_: v_cache", "rope_append_: positions",
                                      "rope_append_: cos_sin"};
constexpr RopeAppendNames kWithCache{
    "attention_with_kvcache: q",       "attention_with_kvcache: k",
    "attention_with_kvcache: v",       "attention_with_kvcache: k_cache",
    "attention_with_kvcache: v_cache", "attention_with_kvcache: positions",
    "attention_with_kvcache: cos_sin"};

void fill_table(const char* what, RopeAppendParams& p, const TensorView& table,
                const TensorView& q) {
  check_typed(what, table, aoti_torch_dtype_float32(), "q", q);
  if (table.ndim != 2) fail(what, " must have 2 dimensions (P, R), got ", table.ndim);
  check_last_dim_contiguous(what, table);
  const int64_t rotary_dim = table.sizes[1];
  if (rotary_dim < 2 || rotary_dim % 2 != 0 || rotary_dim > p.head_dim) {
    fail(what, " must have an even number of columns from 2 to head_dim ", p.head_dim, ", got ",
         rotary_dim);
  }
  if (table.sizes[0] < (p.slots > 1 ? p.slots : 1)) {
    fail(what, " must have a row for each of k_cache's ", p.slots, " slots, got ", table.sizes[0]);
  }
  p.cos_sin = static_cast<const float*>(table.data);
  p.cos_sin_stride = table.strides[0];
  p.table_rows = table.sizes[0];
  p.rotary_dim = rotary_dim;
}

// All but where q goes.
RopeAppendCall check_rope_append(const RopeAppendNames& names, const Tensor& q_tensor,
                                 const Tensor& k_tensor, const Tensor& v_tensor,
                                 const Tensor& k_cache_tensor, const Tensor& v_cache_tensor,
                                 const Tensor& positions_tensor,
                                 const std::optional<Tensor>& cos_sin, bool interleaved) {
  const TensorView q = view(q_tensor), k = view(k_tensor), v = view(v_tensor);
  const TensorView k_cache = view(k_cache_tensor), v_cache = view(v_cache_tensor);
  const TensorView positions = view(positions_tensor);
  RopeAppendParams p;
  if (q.ndim != 4) fail(names.q, " must have 4 dimensions (B, H, T, D), got ", q.ndim);
  p.dtype = check_float_dtype(names.q, q);
  check_last_dim_contiguous(names.q, q);
  check_heads(names.k, k, q, kAny, q.sizes[2]);
  check_heads(names.v, v, q, k.sizes[1], q.sizes[2]);
  check_heads(names.k_cache, k_cache, q, k.sizes[1], kAny);
  check_heads(names.v_cache, v_cache, q, k.sizes[1], k_cache.sizes[2]);
  check_typed(names.positions, positions, aoti_torch_dtype_int32(), "q", q);
  check_shape(names.positions, positions, {q.sizes[0]});
  check_written(names.k_cache, k_cache);
  check_written(names.v_cache, v_cache);

  p.batch = q.sizes[0];
  p.num_heads = q.sizes[1];
  p.num_kv_heads = k.sizes[1];
  p.seq_len = q.sizes[2];
  p.slots = k_cache.sizes[2];
  p.head_dim = q.sizes[3];
  p.interleaved = interleaved;
  if (cos_sin) fill_table(names.cos_sin, p, view(*cos_sin), q);
  p.q = q.data;
  p.k = k.data;
  p.v = v.data;
  p.k_cache = k_cache_tensor.mutable_data_ptr();
  p.v_cache = v_cache_tensor.mutable_data_ptr();
  p.positions = static_cast<const int32_t*>(positions.data);
  p.positions_stride = positions.strides[0];
  p.q_stride = head_strides(q.strides);
  p.k_stride = head_strides(k.strides);
  p.v_stride = head_strides(v.strides);
  p.k_cache_stride = head_strides(k_cache.strides);
  p.v_cache_stride = head_strides(v_cache.strides);
  return {.params = p, .q = q};
}

}  // namespace

RopeAppendCall prepare_rope_append(const Tensor& q, const Tensor& k, const Tensor& v,
                                   const Tensor& k_cache, const Tensor& v_cache,
                                   const Tensor& positions, const std::optional<Tensor>& cos_sin,
                                   bool interleaved) {
  RopeAppendCall call =
      check_rope_append(kRopeAppend, q, k, v, k_cache, v_cache, positions, cos_sin, interleaved);
  check_written(kRopeAppend.q, call.q);
  call.params.q_out = q.mutable_data_ptr();
  call.params.q_out_stride = call.params.q_stride;
  return call;
}

KvCacheCall prepare_attention_with_kvcache(const Tensor& q, const Tensor& k, const Tensor& v,
                                           const Tensor& k_cache, const Tensor& v_cache,
                                           const Tensor& positions,
                                           const std::optional<Tensor>& cos_sin, bool interleaved,
                                           std::optional<double> scale) {
  const RopeAppendCall append =
      check_rope_append(kWithCache, q, k, v, k_cache, v_cache, positions, cos_sin, interleaved);
  if (append.params.seq_len != 1) {
    fail(kWithCache.q, " must hold one token a row, (B, Hq, 1, D), got ", shape_text(append.q));
  }
  KvCacheCall call{
      .append = append.params,
      .attention = prepare_attention(q, k_cache, v_cache, positions, std::nullopt, 1, -1, 0.0,
                                     scale, false, false, "attention_with_kvcache")};
  call.attention.params.kv_lengths_offset = 1;
  return call;
}

std::optional<Tensor> rotate_apart(KvCacheCall& call) {
  RopeAppendParams& append = call.append;
  AttentionParams& attention = call.attention.params;
  // Without a table nothing is written there.
  append.q_out = const_cast<void*>(append.q);
  append.q_out_stride = append.q_stride;
  if (append.cos_sin == nullptr) return std::nullopt;
  const TensorView& q = call.attention.q;
  const AttentionStrides& s = append.q_out_stride = attention.out_stride;
  const int64_t strides[4] = {s.batch, s.head, s.seq, 1};
  Tensor rotated = empty_strided(4, q.sizes, strides, q.dtype, q);
  append.q_out = rotated.mutable_data_ptr();
  attention.q = append.q_out;
  attention.q_stride = append.q_out_stride;
  return rotated;
}

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

ArgmaxCall prepare_argmax(const Tensor& out_tensor, const Tensor& x_tensor) {
  const TensorView out = view(out_tensor), x = view(x_tensor);
  ArgmaxParams p;
  if (x.ndim != 2) fail("argmax_: x must have 2 dimensions (M, N), got ", x.ndim);
  p.dtype = check_float_dtype("argmax_: x", x);
  check_last_dim_contiguous("argmax_: x", x);
  if (x.sizes[1] < 1) fail("argmax_: x must have at least 1 column, got 0");
  check_typed("argmax_: out", out, aoti_torch_dtype_int64(), "x", x);
  check_shape("argmax_: out", out, {x.sizes[0], 1});
  check_dense("argmax_: out", out);
  p.x = x.data;
  p.out = static_cast<int64_t*>(out_tensor.mutable_data_ptr());
  p.x_stride = x.strides[0];
  p.rows = x.sizes[0];
  p.columns = x.sizes[1];
  return {.params = p, .x = x};
}

}  // namespace flashint8::ops
