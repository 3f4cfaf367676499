// The operators on the CPU.
#include <string>
#include <tuple>

#include "attention_args.h"
#include "cache_args.h"
#include "decoder_args.h"
#include "flashint8/cpu.h"
#include "linear_args.h"

namespace flashint8::ops {
namespace {

// torch's own threads, for the torch-free kernels.
CpuThreads torch_threads() {
  uint32_t num_threads = 1;
  TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&num_threads));
  return {.parallel_for =
              [](int64_t count, int64_t grain, void (*fn)(int64_t, int64_t, void*), void* context) {
                TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, grain, fn, context));
              },
          .num_threads = static_cast<int>(num_threads)};
}

AttentionCall run_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                            const std::optional<Tensor>& kv_lengths,
                            const std::optional<Tensor>& kv_start, int64_t causal, int64_t window,
                            double softcap, std::optional<double> scale, bool fp16_accumulate,
                            bool with_lse) {
  AttentionCall call = prepare_attention(q, k, v, kv_lengths, kv_start, causal, window, softcap,
                                         scale, fp16_accumulate, with_lse);
  if (!is_empty(call.params)) cpu::attention(call.params, torch_threads());
  return call;
}

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v,
                 const std::optional<Tensor>& kv_lengths, const std::optional<Tensor>& kv_start,
                 int64_t causal, int64_t window, double softcap, std::optional<double> scale,
                 bool fp16_accumulate) {
  return run_attention(q, k, v, kv_lengths, kv_start, causal, window, softcap, scale,
                       fp16_accumulate, false)
      .out;
}

std::tuple<Tensor, Tensor> attention_with_lse(const Tensor& q, const Tensor& k, const Tensor& v,
                                              const std::optional<Tensor>& kv_lengths,
                                              const std::optional<Tensor>& kv_start, int64_t causal,
                                              int64_t window, double softcap,
                                              std::optional<double> scale, bool fp16_accumulate) {
  const AttentionCall call = run_attention(q, k, v, kv_lengths, kv_start, causal, window, softcap,
                                           scale, fp16_accumulate, true);
  return {call.out, *call.lse};
}

Tensor int8_linear(const Tensor& x, const Tensor& weight, const Tensor& weight_scale,
                   const std::optional<Tensor>& bias, const std::optional<std::string>& activation,
                   bool /*weight_ready*/) {
  const Int8LinearCall call = prepare_int8_linear(x, weight, weight_scale, bias, activation);
  if (call.params.m > 0 && call.params.n > 0) cpu::int8_linear(call.params, torch_threads());
  return call.out;
}

std::tuple<Tensor, Tensor> quantize_per_channel(const Tensor& weight) {
  const QuantizeCall call = prepare_quantize(weight);
  const int64_t bad_row = cpu::quantize_per_channel(call.params, torch_threads());
  if (bad_row >= 0) fail_non_finite(bad_row);
  return {call.quantized, call.scale};
}

void rope_append(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& k_cache,
                 const Tensor& v_cache, const Tensor& positions,
                 const std::optional<Tensor>& cos_sin, bool interleaved) {
  const RopeAppendCall call =
      prepare_rope_append(q, k, v, k_cache, v_cache, positions, cos_sin, interleaved);
  if (!is_empty(call.params)) cpu::rope_append(call.params, torch_threads());
}

Tensor attention_with_kvcache(const Tensor& q, const Tensor& k, const Tensor& v,
                              const Tensor& k_cache, const Tensor& v_cache, const Tensor& positions,
                              const std::optional<Tensor>& cos_sin, bool interleaved,
                              std::optional<double> scale, bool /*cache_ready*/) {
  KvCacheCall call = prepare_attention_with_kvcache(q, k, v, k_cache, v_cache, positions, cos_sin,
                                                    interleaved, scale);
  const std::optional<Tensor> rotated = rotate_apart(call);
  if (!is_empty(call.append)) cpu::rope_append(call.append, torch_threads());
  if (!is_empty(call.attention.params)) cpu::attention(call.attention.params, torch_threads());
  return call.attention.out;
}

Tensor add_norm(const Tensor& residual, const std::optional<Tensor>& x, const Tensor& weight,
                const std::optional<Tensor>& bias, double eps, bool rms) {
  const AddNormCall call = prepare_add_norm(residual, x, weight, bias, eps, rms);
  if (!is_empty(call.params)) cpu::add_norm(call.params, torch_threads());
  return call.out;
}

Tensor silu_mul(const Tensor& gate_up) {
  const SiluMulCall call = prepare_silu_mul(gate_up);
  if (!is_empty(call.params)) cpu::silu_mul(call.params, torch_threads());
  return call.out;
}

void embed(const Tensor& out, const Tensor& tokens, const Tensor& weight,
           const Tensor& weight_scale, const std::optional<Tensor>& positions,
           const std::optional<Tensor>& position_weight) {
  const EmbedCall call =
      prepare_embed(out, tokens, weight, weight_scale, positions, position_weight);
  if (!is_empty(call.params)) cpu::embed(call.params, torch_threads());
}

void argmax(const Tensor& out, const Tensor& x, const std::optional<Tensor>& positions) {
  const ArgmaxCall call = prepare_argmax(out, x, positions);
  if (call.params.rows > 0) cpu::argmax(call.params, torch_threads());
}

}  // namespace
}  // namespace flashint8::ops

STABLE_TORCH_LIBRARY_IMPL(flashint8, CPU, m) {
  m.impl("attention", TORCH_BOX(&flashint8::ops::attention));
  m.impl("attention_with_lse", TORCH_BOX(&flashint8::ops::attention_with_lse));
  m.impl("int8_linear", TORCH_BOX(&flashint8::ops::int8_linear));
  m.impl("quantize_per_channel", TORCH_BOX(&flashint8::ops::quantize_per_channel));
  m.impl("rope_append_", TORCH_BOX(&flashint8::ops::rope_append));
  m.impl("attention_with_kvcache", TORCH_BOX(&flashint8::ops::attention_with_kvcache));
  m.impl("add_norm_", TORCH_BOX(&flashint8::ops::add_norm));
  m.impl("silu_mul", TORCH_BOX(&flashint8::ops::silu_mul));
  m.impl("embed_", TORCH_BOX(&flashint8::ops::embed));
  m.impl("argmax_", TORCH_BOX(&flashint8::ops::argmax));
}
