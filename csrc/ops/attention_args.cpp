#include "attention_args.h"

#include <climits>
#include <cmath>
#include <cstdint>

namespace flashint8::ops {
namespace {

constexpr int64_t kMaxHeadDim = 256;

void check_rank(const char* what, const TensorView& t) {
  if (t.ndim != 4) fail(what, " must have 4 dimensions (B, H, T, D), got ", t.ndim);
}

void check_like_q(const char* what, const TensorView& t, const TensorView& q) {
  check_like(what, t, "q", q);
  if (t.sizes[0] != q.sizes[0]) fail(what, " has batch ", t.sizes[0], ", q has ", q.sizes[0]);
  if (t.sizes[3] != q.sizes[3]) fail(what, " has head_dim ", t.sizes[3], ", q has ", q.sizes[3]);
  check_last_dim_contiguous(what, t);
}

void check_head_dim(const char* op, const TensorView& q) {
  const int64_t head_dim = q.sizes[3];
  if (head_dim < 1) fail(op, ": head_dim must be at least 1, got ", head_dim);
  if (head_dim > kMaxHeadDim) {
    fail(op, ": head_dim must be at most ", kMaxHeadDim, ", got ", head_dim);
  }
  if (is_cuda(q) && head_dim % 8 != 0) {
    fail(op, ": head_dim must be a multiple of 8 on CUDA, got ", head_dim);
  }
}

// Both are used in float32.
void check_scale_and_softcap(const char* op, double scale, double softcap) {
  const auto cap = static_cast<float>(softcap);
  if (!(softcap >= 0) || !std::isfinite(cap)) {
    fail(op, ": softcap must be finite and at least 0, got ", softcap);
  }
  if (!std::isfinite(static_cast<float>(scale))) {
    fail(op, ": scale must be finite, got ", scale);
  }
  if (softcap > 0 && !(std::isnormal(cap) && std::isfinite(static_cast<float>(scale) / cap))) {
    fail(op, ": scale / softcap must be finite in float32, got ", scale, " / ", softcap);
  }
}

// The CUDA kernels count keys and queries in 32 bits.
void check_lengths(const char* op, const TensorView& q, const TensorView& k) {
  constexpr int64_t kMost = INT32_MAX - 1;
  if (is_cuda(q) && q.sizes[2] + k.sizes[2] > kMost) {
    fail(op, ": queries and keys must be at most ", kMost, " together on CUDA, got ", q.sizes[2],
         " and ", k.sizes[2]);
  }
}

// (batch,) int32 on q's device, any stride.
void check_row_numbers(const char* what, const TensorView& t, const TensorView& q) {
  check_typed(what, t, aoti_torch_dtype_int32(), "q", q);
  if (t.ndim != 1 || t.sizes[0] != q.sizes[0]) {
    fail(what, " must have shape (", q.sizes[0], ",), got ", shape_text(t));
  }
}

// The strides of a dense output in q's memory order: the three leading dimensions from the largest
// stride of q to the smallest, head_dim innermost. Dimensions of size 1 or stride 0 have no order
// and keep their place.
void output_strides(const TensorView& q, int64_t strides[4]) {
  int ordered[3], count = 0;  // the dimensions that have an order, outermost first
  for (int d = 0; d < 3; ++d) {
    if (q.sizes[d] <= 1 || q.strides[d] == 0) continue;
    int i = count++;
    for (; i > 0 && q.strides[ordered[i - 1]] < q.strides[d]; --i) ordered[i] = ordered[i - 1];
    ordered[i] = d;
  }
  strides[3] = 1;
  int64_t stride = q.sizes[3];
  for (int d = 2; d >= 0; --d) {
    const bool has_order = q.sizes[d] > 1 && q.strides[d] != 0;
    const int dimension = has_order ? ordered[--count] : d;
    strides[dimension] = stride;
    stride *= q.sizes[dimension] > 1 ? q.sizes[dimension] : 1;
  }
}

}  // namespace

AttentionCall prepare_attention(const Tensor& q_tensor, const Tensor& k_tensor,
                                const Tensor& v_tensor, const std::optional<Tensor>& kv_lengths,
                                const std::optional<Tensor>& kv_start, int64_t causal,
                                int64_t window, double softcap, std::optional<double> scale,
                                bool fp16_accumulate, bool with_lse, const char* op) {
  const TensorView q = view(q_tensor), k = view(k_tensor), v = view(v_tensor);
  check_rank("attention: q", q);
  check_rank("attention: k", k);
  check_rank("attention: v", v);
  AttentionParams p;
  p.dtype = check_float_dtype("attention: q", q);
  check_like_q("attention: k", k, q);
  check_like_q("attention: v", v, q);
  check_last_dim_contiguous("attention: q", q);
  if (v.sizes[1] != k.sizes[1]) {
    fail("attention: v has ", v.sizes[1], " heads, k has ", k.sizes[1]);
  }
  if (v.sizes[2] != k.sizes[2]) {
    fail("attention: v has ", v.sizes[2], " keys, k has ", k.sizes[2]);
  }
  if (k.sizes[1] == 0 ? q.sizes[1] != 0 : q.sizes[1] % k.sizes[1] != 0) {
    fail(op, ": q has ", q.sizes[1], " heads, not a multiple of k's ", k.sizes[1]);
  }
  check_head_dim(op, q);
  check_lengths(op, q, k);
  if (causal < 0 || causal > 2) fail("attention: causal must be 0, 1 or 2, got ", causal);
  if (window != -1 && window <= 0) fail("attention: window must be -1 or positive, got ", window);
  if (window > 0 && causal == 0) fail("attention: window needs causal 1 or 2, got causal 0");
  const double multiplier = scale ? *scale : 1.0 / std::sqrt(static_cast<double>(q.sizes[3]));
  check_scale_and_softcap(op, multiplier, softcap);
  if (fp16_accumulate && p.dtype != DType::kFloat16) {
    fail("attention: fp16_accumulate needs float16, got ", dtype_name(q.dtype));
  }

  if (kv_lengths) {
    const TensorView t = view(*kv_lengths);
    check_row_numbers("attention: kv_lengths", t, q);
    p.kv_lengths = static_cast<const int32_t*>(t.data);
    p.kv_lengths_stride = t.strides[0];
  }
  if (kv_start) {
    const TensorView t = view(*kv_start);
    check_row_numbers("attention: kv_start", t, q);
    p.kv_start = static_cast<const int32_t*>(t.data);
    p.kv_start_stride = t.strides[0];
  }

  p.batch = q.sizes[0];
  p.num_heads = q.sizes[1];
  p.num_kv_heads = k.sizes[1];
  p.seq_len_q = q.sizes[2];
  p.seq_len_kv = k.sizes[2];
  p.head_dim = q.sizes[3];
  p.causal = static_cast<Causal>(causal);
  // Wider than every distance is none.
  p.window = window >= q.sizes[2] + k.sizes[2] ? -1 : window;
  p.softcap = static_cast<float>(softcap);
  p.scale = static_cast<float>(multiplier);
  p.fp16_accumulate = fp16_accumulate;

  int64_t out_strides[4];
  output_strides(q, out_strides);
  AttentionCall call{.params = p,
                     .out = empty_strided(4, q.sizes, out_strides, q.dtype, q),
                     .lse = std::nullopt,
                     .q = q};
  call.params.q = q.data;
  call.params.k = k.data;
  call.params.v = v.data;
  call.params.q_stride = head_strides(q.strides);
  call.params.k_stride = head_strides(k.strides);
  call.params.v_stride = head_strides(v.strides);
  call.params.out_stride = head_strides(out_strides);
  call.params.out = call.out.mutable_data_ptr();
  if (with_lse) {
    call.lse = empty_contiguous(3, q.sizes, aoti_torch_dtype_float32(), q);
    call.params.lse = static_cast<float*>(call.lse->mutable_data_ptr());
  }
  return call;
}

}  // namespace flashint8::ops
