// The contract of the small operators between a decoder's attention and linears.
#pragma once

#include <cstdint>

#include "flashint8/attention.h"
#include "flashint8/types.h"

namespace flashint8 {

// Rotary embedding of q (in place) and of k on its way into the cache, and v beside it. Token t of
// batch row b has position and slot positions[b] + t; a token whose slot is outside [0, slots) is
// not written. Angle i < rotary_dim / 2 turns the elements (i, i + rotary_dim / 2), or (2i, 2i + 1)
// where interleaved; elements from rotary_dim on pass through.
struct RopeAppendParams {
  void* q = nullptr;        // (batch, num_heads, seq_len, head_dim), dtype, any strides
  const void* k = nullptr;  // (batch, num_kv_heads, seq_len, head_dim), dtype, any strides
  const void* v = nullptr;  // as k, with strides of its own
  void* k_cache = nullptr;  // (batch, num_kv_heads, slots, head_dim), dtype, any strides
  void* v_cache = nullptr;  // as k_cache, with strides of its own
  const int32_t* positions = nullptr;  // (batch,), stride in elements
  // (table_rows, rotary_dim): cos of every angle, then sin; rows cos_sin_stride elements apart.
  // A row past either end is the last or the first. nullptr: nothing is rotated.
  const float* cos_sin = nullptr;

  AttentionStrides q_stride, k_stride, v_stride, k_cache_stride, v_cache_stride;
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

}  // namespace flashint8
