// Checks the arguments of rope_append_ and attention_with_kvcache, which write a KV cache, and
// fills the kernels' params. Shared by the CPU and the CUDA ops.
#pragma once

#include <optional>

#include "attention_args.h"
#include "flashint8/decoder.h"
#include "tensor_view.h"

namespace flashint8::ops {

struct RopeAppendCall {
  RopeAppendParams params;
  TensorView q;
};

struct KvCacheCall {
  RopeAppendParams append;
  AttentionCall attention;
};

// Both throw std::invalid_argument, naming the argument, what was expected and what came.
RopeAppendCall prepare_rope_append(const Tensor& q, const Tensor& k, const Tensor& v,
                                   const Tensor& k_cache, const Tensor& v_cache,
                                   const Tensor& positions, const std::optional<Tensor>& cos_sin,
                                   bool interleaved);
KvCacheCall prepare_attention_with_kvcache(const Tensor& q, const Tensor& k, const Tensor& v,
                                           const Tensor& k_cache, const Tensor& v_cache,
                                           const Tensor& positions,
                                           const std::optional<Tensor>& cos_sin, bool interleaved,
                                           std::optional<double> scale);

// Makes two steps of the call: `append` rotates q into a tensor of its own (where there is a
// table), which `attention` then reads and the caller keeps.
std::optional<Tensor> rotate_apart(KvCacheCall& call);

// Nothing to do.
inline bool is_empty(const RopeAppendParams& p) {
  return p.batch == 0 || p.seq_len == 0 || p.num_heads + p.num_kv_heads == 0;
}

}  // namespace flashint8::ops
