// Checks the arguments of the attention operator, allocates its output and fills the kernels'
// params. Shared by the CPU and the CUDA op.
#pragma once

#include <optional>

#include "flashint8/attention.h"
#include "tensor_view.h"

namespace flashint8::ops {

struct AttentionCall {
  AttentionParams params;
  Tensor out;
  std::optional<Tensor> lse;
  TensorView q;  // where to allocate a workspace
};

// Throws std::invalid_argument, naming the argument, what was expected and what came. `op` is named
// where another operator's own checks leave q, k and v to be refused.
AttentionCall prepare_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                const std::optional<Tensor>& kv_lengths,
                                const std::optional<Tensor>& kv_start, int64_t causal,
                                int64_t window, double softcap, std::optional<double> scale,
                                bool fp16_accumulate, bool with_lse, const char* op = "attention");

// Of a (B, H, T, D) tensor, as the kernels take them.
inline AttentionStrides head_strides(const int64_t* strides) {
  return {.batch = strides[0], .head = strides[1], .seq = strides[2]};
}

inline bool is_empty(const AttentionParams& p) {
  return p.batch == 0 || p.num_heads == 0 || p.seq_len_q == 0;
}

}  // namespace flashint8::ops
