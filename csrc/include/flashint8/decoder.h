// The contract of the small operators between a decoder's attention and linears.
#pragma once

#include <cstdint>

#include "flashint8/attention.h"
#include "flashint8/types.h"

namespace flashint8 {

// Rotary embedding of q and of k on its way into the cache, and v beside it. Token t of
// batch row b has position and slot positions[b] + t; a token whose slot is outside [0, slots) is
// not written. Angle i < rotary_dim / 2 turns the elements (i, i + rotary_dim / 2), or (2i, 2i + 1)
// where interleaved; elements from rotary_dim on pass through.
struct RopeAppendParams {
  const void* q = nullptr;  // (batch, num_heads, seq_len, head_dim), dtype, any strides
  void* q_out = nullptr;    // as q, with strides of its own; may be q itself
  const void* k = nullptr;  // (batch, num_kv_heads, seq_len, head_dim), dtype, any strides
  const void* v = nullptr;  // as k, with strides of its own
  void* k_cache = nullptr;  // (batch, num_kv_heads, slots, head_dim), dtype, any strides
  void* v_cache = nullptr;  // as k_cache, with strides of its own
  const int32_t* positions = nullptr;  // (batch,), stride in elements
  // (table_rows, rotary_dim): cos of every angle, then sin; rows cos_sin_stride elements apart.
  // A row past either end is the last or the first. nullptr: nothing is rotated.
  const float* cos_sin = nullptr;

  AttentionStrides q_stride, q_out_stride, k_stride, v_stride, k_cache_stride, v_cache_stride;
  int64_t positions_stride = 1;
  int64_t cos_sin_stride = 0;
  int64_t table_rows = 0;
  int64_t batch = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t seq_len = 0;
  int64_t slots = 0;
  int64_t head_dim = 0;
  int64_t rotary_dim = 0;  // even, at most head_dim; 0 without cos_sin
  bool interleaved = false;
  DType dtype = DType::kFloat16;
};

// residual += x, rounded to dtype; out = norm(residual) * weight + bias. The norm divides by
// sqrt(mean(residual^2) + eps), or, where not rms, takes the mean away first.
struct AddNormParams {
  void* residual = nullptr;      // (rows, columns) by residual_rows, dtype
  const void* x = nullptr;       // (rows, columns) by x_rows, dtype; may be nullptr
  const void* weight = nullptr;  // (columns,) contiguous, dtype
  const void* bias = nullptr;    // as weight; may be nullptr
  void* out = nullptr;           // (rows, columns) contiguous, dtype
  RowLayout residual_rows, x_rows;
  int64_t rows = 0;
  int64_t columns = 0;
  float eps = 0.0f;
  bool rms = true;
  DType dtype = DType::kFloat16;
};

// out[m, n] = silu(gate_up[m, n]) * gate_up[m, columns + n].
struct SiluMulParams {
  const void* gate_up = nullptr;  // (rows, 2 * columns) by gate_up_rows, dtype
  void* out = nullptr;            // (rows, columns) contiguous, dtype
  RowLayout gate_up_rows;
  int64_t rows = 0;
  int64_t columns = 0;
  DType dtype = DType::kFloat16;
};

// out[b, t] = weight[token] * weight_scale[token], plus position_weight's row positions[b] + t. A
// token or a row past either end is the last or the first.
struct EmbedParams {
  void* out = nullptr;                    // (batch, seq_len, columns) contiguous, dtype
  const int64_t* tokens = nullptr;        // (batch, seq_len), strides below
  const int8_t* weight = nullptr;         // (vocabulary, columns) contiguous
  const float* weight_scale = nullptr;    // (vocabulary,) contiguous
  const int32_t* positions = nullptr;     // (batch,), stride in elements; with position_weight
  const void* position_weight = nullptr;  // (num_positions, columns) contiguous, dtype; or nullptr
  int64_t batch = 0;
  int64_t seq_len = 0;
  int64_t columns = 0;
  int64_t vocabulary = 0;
  int64_t num_positions = 0;
  int64_t token_stride_batch = 0, token_stride_seq = 0;
  int64_t positions_stride = 1;
  DType dtype = DType::kFloat16;
};

// out[m] = the first column of row m with the largest value; NaN is never the largest. And
// positions[m] += 1.
struct ArgmaxParams {
  const void* x = nullptr;       // (rows, columns), rows x_stride elements apart, dtype
  int64_t* out = nullptr;        // (rows,) contiguous
  int32_t* positions = nullptr;  // (rows,) contiguous, or nullptr
  void* workspace = nullptr;     // CUDA: argmax_workspace_bytes
  int64_t x_stride = 0;
  int64_t rows = 0;
  int64_t columns = 0;
  DType dtype = DType::kFloat16;
};

// Blocks that share a row on CUDA, and the partial results they leave: 8 bytes each.
inline int64_t argmax_pieces(const ArgmaxParams& p) {
  constexpr int64_t kPiece = 1024, kMost = 128;
  const int64_t pieces = ceil_div(p.columns, kPiece);
  return pieces < kMost ? pieces : kMost;
}
inline int64_t argmax_workspace_bytes(const ArgmaxParams& p) {
  return 8 * p.rows * argmax_pieces(p);
}

}  // namespace flashint8
