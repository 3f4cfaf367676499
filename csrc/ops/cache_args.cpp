#include "cache_args.h"

namespace flashint8::ops {
namespace {

// (batch, heads, tokens, head_dim) as q.
void check_heads(const char* what, const TensorView& t, const TensorView& q, int64_t heads,
                 int64_t tokens) {
  check_like(what, t, "q", q);
  check_shape(what, t, {q.sizes[0], heads, tokens, q.sizes[3]});
  check_last_dim_contiguous(what, t);
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

}  // namespace flashint8::ops
