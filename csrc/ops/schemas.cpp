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
  m.def("int8_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias=None) -> Tensor");
  m.def("quantize_per_channel(Tensor weight) -> (Tensor, Tensor)");
}
