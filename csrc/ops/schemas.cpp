// The operators' schemas. Lives in the CPU op library, which loads with any torch.
#include "stable.h"

STABLE_TORCH_LIBRARY(flashint8, m) {
  m.def(
      "attention(Tensor q, Tensor k, Tensor v, Tensor? kv_lengths=None, Tensor? kv_start=None, *, "
      "int causal=1, int window=-1, float softcap=0.0, float? scale=None, bool "
      "fp16_accumulate=False) -> Tensor");
  m.def(
      "attention_with_lse(Tensor q, Tensor k, Tensor v, Tensor? kv_lengths=None, "
      "Tensor? kv_start=None, *, int causal=1, int window=-1, float softcap=0.0, "
      "float? scale=None, bool fp16_accumulate=False) -> (Tensor, Tensor)");
  m.def(
      "int8_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias=None, *, "
      "str? activation=None, bool weight_ready=False) -> Tensor");
  m.def(
      "rope_append_(Tensor(a!) q, Tensor k, Tensor v, Tensor(b!) k_cache, Tensor(c!) v_cache, "
      "Tensor positions, Tensor? cos_sin=None, *, bool interleaved=False) -> ()");
  m.def(
      "attention_with_kvcache(Tensor q, Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) "
      "v_cache, "
      "Tensor positions, Tensor? cos_sin=None, *, bool interleaved=False, float? scale=None, bool "
      "cache_ready=False) -> Tensor");
  m.def(
      "add_norm_(Tensor(a!) residual, Tensor? x, Tensor weight, Tensor? bias=None, *, "
      "float eps=1e-5, bool rms=True) -> Tensor");
  m.def("silu_mul(Tensor gate_up) -> Tensor");
  m.def(
      "embed_(Tensor(a!) out, Tensor tokens, Tensor weight, Tensor weight_scale, "
      "Tensor? positions=None, Tensor? position_weight=None) -> ()");
  m.def("argmax_(Tensor(a!) out, Tensor x, Tensor(b!)? positions=None) -> ()");
  m.def("quantize_per_channel(Tensor weight) -> (Tensor, Tensor)");
}
