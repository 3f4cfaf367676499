// The contract of the attention operator: what csrc/ops fills and the kernels read.
#pragma once

#include <cstdint>

#include "flashint8/types.h"

namespace flashint8 {

struct RopeAppendParams;

enum class Causal : int32_t {
  kNone = 0,
  kAlignedToEnd = 1,    // the last query sees the row's last key
  kAlignedToStart = 2,  // query i sees keys j <= i
};

// Strides in elements; the last dimension (head_dim) has stride 1.
struct AttentionStrides {
  int64_t batch = 0;
  int64_t head = 0;
  int64_t seq = 0;
};

struct AttentionParams {
  const void* q = nullptr;  // (batch, num_heads, seq_len_q, head_dim), dtype, any strides
  const void* k = nullptr;  // (batch, num_kv_heads, seq_len_kv, head_dim), dtype, any strides
  const void* v = nullptr;  // as k, with strides of its own
  void* out = nullptr;      // as q, with strides of its own; every element is written
  float* lse = nullptr;     // (batch, num_heads, seq_len_q) contiguous, natural log; may be nullptr
  // Batch row b sees keys kv_start[b] <= j < kv_lengths[b] + kv_lengths_offset; both are clamped to
  // [0, seq_len_kv] by the kernel. Either may be nullptr, which means seq_len_kv and 0. (batch,),
  // stride in elements.
  const int32_t* kv_lengths = nullptr;
  const int32_t* kv_start = nullptr;
  int64_t kv_lengths_stride = 1;
  int64_t kv_start_stride = 1;
  int64_t kv_lengths_offset = 0;
  void* workspace = nullptr;  // plan.workspace_bytes, 16-byte aligned; nullptr where that is 0

  AttentionStrides q_stride, k_stride, v_stride, out_stride;
  int64_t batch = 0;
  int64_t num_heads = 0;  // a multiple of num_kv_heads; head h reads KV head h / group
  int64_t num_kv_heads = 0;
  int64_t seq_len_q = 0;
  int64_t seq_len_kv = 0;
  int64_t head_dim = 0;  // <= 256; CUDA: a multiple of 8

  DType dtype = DType::kFloat16;
  Causal causal = Causal::kAlignedToEnd;
  int64_t window = -1;   // > 0: keys j > diagonal - window only; needs causal
  float softcap = 0.0f;  // > 0: scores become softcap * tanh(score * scale / softcap)
  float scale = 0.0f;    // multiplies QK^T
  // QK^T may be summed in fp16, as the prefill kernel then does; fp16 tensors only.
  bool fp16_accumulate = false;

  // A decoding step's own token (CUDA, where the plan says `appends`): q is rotated as it is read,
  // and the token goes into the caches, which are k and v, at its position, which is kv_lengths
  // (with an offset of 1). In host memory; nullptr: nothing is appended.
  const RopeAppendParams* append = nullptr;
  // With append: no kernel under way writes kv_lengths, cos_sin or the rows before the token's.
  bool cache_ready = false;
};

// Bounds of one batch row. Query i sees the keys j with
//   first <= j < last, j <= i + diagonal, j > i + diagonal - window
// where the last two hold for causal attention only (else diagonal is past every key).
// A query that sees no key gives 0, and lse = -infinity.
struct RowBounds {
  int64_t first;
  int64_t last;
  int64_t diagonal;
};

FLASHINT8_HOST_DEVICE inline int64_t clamp_to(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : (x > high ? high : x);
}

// load(pointer): the integer there.
template <typename Load>
FLASHINT8_HOST_DEVICE inline RowBounds row_bounds(const AttentionParams& p, int64_t b, Load load) {
  RowBounds row;
  row.first = p.kv_start ? clamp_to(load(p.kv_start + b * p.kv_start_stride), 0, p.seq_len_kv) : 0;
  row.last = p.kv_lengths
                 ? clamp_to(load(p.kv_lengths + b * p.kv_lengths_stride) + p.kv_lengths_offset, 0,
                            p.seq_len_kv)
                 : p.seq_len_kv;
  switch (p.causal) {
    case Causal::kNone: row.diagonal = p.seq_len_kv; break;
    case Causal::kAlignedToEnd: row.diagonal = row.last - p.seq_len_q; break;
    case Causal::kAlignedToStart: row.diagonal = 0; break;
  }
  return row;
}

FLASHINT8_HOST_DEVICE inline RowBounds row_bounds(const AttentionParams& p, int64_t b) {
  return row_bounds(p, b, [](const int32_t* pointer) { return *pointer; });
}

}  // namespace flashint8
