// The operators on CUDA: check, plan, launch.
#include <climits>
#include <nvtx3/nvtx3.hpp>
#include <string>
#include <tuple>

#include "attention_args.h"
#include "cache_args.h"
#include "cuda_device.h"
#include "decoder_args.h"
#include "flashint8/cuda.h"
#include "library_linear.h"
#include "linear_args.h"

namespace flashint8::ops {
namespace {

struct NvtxDomain {
  static constexpr const char* name = "flashint8";
};
using NvtxRange = nvtx3::scoped_range_in<NvtxDomain>;

// Scratch memory from torch's allocator, which knows the stream. nullptr where none is needed.
std::optional<Tensor> allocate_workspace(int64_t bytes, const TensorView& like) {
  if (bytes == 0) return std::nullopt;
  return empty_contiguous(1, &bytes, aoti_torch_dtype_uint8(), like);
}

// `like`: where to allocate the workspace.
void launch_attention(AttentionParams& params, const AttentionPlan& plan, const TensorView& like,
                      const CudaCall& cuda_call) {
  const std::optional<Tensor> workspace = allocate_workspace(plan.workspace_bytes, like);
  if (workspace) params.workspace = workspace->mutable_data_ptr();
  cuda_call.check(cuda::launch_attention_fwd(params, plan, cuda_call.stream()));
}

AttentionCall run_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                            const std::optional<Tensor>& kv_lengths,
                            const std::optional<Tensor>& kv_start, int64_t causal, int64_t window,
                            double softcap, std::optional<double> scale, bool fp16_accumulate,
                            bool with_lse) {
  const NvtxRange range("attention");
  AttentionCall call = prepare_attention(q, k, v, kv_lengths, kv_start, causal, window, softcap,
                                         scale, fp16_accumulate, with_lse);
  if (is_empty(call.params)) return call;
  const CudaCall cuda_call("attention", call.q);
  launch_attention(call.params, plan_attention(call.params, cuda_call.card()), call.q, cuda_call);
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
                   bool weight_ready) {
  const NvtxRange range("int8_linear");
  Int8LinearCall call = prepare_int8_linear(x, weight, weight_scale, bias, activation);
  call.params.weight_ready = weight_ready;
  if (call.params.m == 0 || call.params.n == 0) return call.out;
  const CudaCall cuda_call("int8_linear", call.x);
  const LinearPlan plan = plan_int8_linear(call.params, cuda_call.card());
  const std::optional<Tensor> workspace = allocate_workspace(plan.workspace_bytes, call.x);
  if (workspace) call.params.workspace = workspace->mutable_data_ptr();
  if (plan.kernel == LinearKernel::kLibrary) {
    library_linear(call.params, plan, call.x, cuda_call);
  } else {
    cuda_call.check(cuda::launch_int8_linear(call.params, plan, cuda_call.stream()));
  }
  return call.out;
}

// Waits for the device: it has to know whether a row held a NaN or an infinity.
std::tuple<Tensor, Tensor> quantize_per_channel(const Tensor& weight) {
  const NvtxRange range("quantize_per_channel");
  const QuantizeCall call = prepare_quantize(weight);
  if (call.params.n == 0) return {call.quantized, call.scale};
  const CudaCall cuda_call("quantize_per_channel", call.weight);
  const cudaStream_t stream = cuda_call.stream();
  const Tensor bad_row = *allocate_workspace(sizeof(int32_t), call.weight);
  auto* device_value = static_cast<int32_t*>(bad_row.mutable_data_ptr());
  int32_t value = INT32_MAX;
  cuda_call.check(
      cudaMemcpyAsync(device_value, &value, sizeof value, cudaMemcpyHostToDevice, stream));
  cuda_call.check(cuda::launch_quantize_per_channel(call.params, device_value, stream));
  cuda_call.check(
      cudaMemcpyAsync(&value, device_value, sizeof value, cudaMemcpyDeviceToHost, stream));
  cuda_call.check(cudaStreamSynchronize(stream));
  if (value != INT32_MAX) fail_non_finite(value);
  return {call.quantized, call.scale};
}

void rope_append(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& k_cache,
                 const Tensor& v_cache, const Tensor& positions,
                 const std::optional<Tensor>& cos_sin, bool interleaved) {
  const NvtxRange range("rope_append_");
  const RopeAppendCall call =
      prepare_rope_append(q, k, v, k_cache, v_cache, positions, cos_sin, interleaved);
  if (is_empty(call.params)) return;
  const CudaCall cuda_call("rope_append_", call.q);
  cuda_call.check(cuda::launch_rope_append(call.params, cuda_call.card(), cuda_call.stream()));
}

// One launch where the plan takes the token along, two otherwise.
Tensor attention_with_kvcache(const Tensor& q, const Tensor& k, const Tensor& v,
                              const Tensor& k_cache, const Tensor& v_cache, const Tensor& positions,
                              const std::optional<Tensor>& cos_sin, bool interleaved,
                              std::optional<double> scale, bool cache_ready) {
  const NvtxRange range("attention_with_kvcache");
  KvCacheCall call = prepare_attention_with_kvcache(q, k, v, k_cache, v_cache, positions, cos_sin,
                                                    interleaved, scale);
  if (is_empty(call.append)) return call.attention.out;
  AttentionParams& params = call.attention.params;
  const CudaCall cuda_call("attention_with_kvcache", call.attention.q);
  params.append = &call.append;
  params.cache_ready = cache_ready;
  AttentionPlan plan;
  if (!is_empty(params)) plan = plan_attention(params, cuda_call.card());
  std::optional<Tensor> rotated;
  if (!plan.appends) {
    params.append = nullptr;
    rotated = rotate_apart(call);
    cuda_call.check(cuda::launch_rope_append(call.append, cuda_call.card(), cuda_call.stream()));
    if (is_empty(params)) return call.attention.out;
    plan = plan_attention(params, cuda_call.card());
  }
  launch_attention(params, plan, call.attention.q, cuda_call);
  return call.attention.out;
}

Tensor add_norm(const Tensor& residual, const std::optional<Tensor>& x, const Tensor& weight,
                const std::optional<Tensor>& bias, double eps, bool rms) {
  const NvtxRange range("add_norm_");
  const AddNormCall call = prepare_add_norm(residual, x, weight, bias, eps, rms);
  if (is_empty(call.params)) return call.out;
  const CudaCall cuda_call("add_norm_", call.residual);
  cuda_call.check(cuda::launch_add_norm(call.params, cuda_call.card(), cuda_call.stream()));
  return call.out;
}

Tensor silu_mul(const Tensor& gate_up) {
  const NvtxRange range("silu_mul");
  const SiluMulCall call = prepare_silu_mul(gate_up);
  if (is_empty(call.params)) return call.out;
  const CudaCall cuda_call("silu_mul", call.gate_up);
  cuda_call.check(cuda::launch_silu_mul(call.params, cuda_call.card(), cuda_call.stream()));
  return call.out;
}

void embed(const Tensor& out, const Tensor& tokens, const Tensor& weight,
           const Tensor& weight_scale, const std::optional<Tensor>& positions,
           const std::optional<Tensor>& position_weight) {
  const NvtxRange range("embed_");
  const EmbedCall call =
      prepare_embed(out, tokens, weight, weight_scale, positions, position_weight);
  if (is_empty(call.params)) return;
  const CudaCall cuda_call("embed_", call.out);
  cuda_call.check(cuda::launch_embed(call.params, cuda_call.card(), cuda_call.stream()));
}

void argmax(const Tensor& out, const Tensor& x, const std::optional<Tensor>& positions) {
  const NvtxRange range("argmax_");
  ArgmaxCall call = prepare_argmax(out, x, positions);
  if (call.params.rows == 0) return;
  const CudaCall cuda_call("argmax_", call.x);
  const Tensor workspace = *allocate_workspace(argmax_workspace_bytes(call.params), call.x);
  call.params.workspace = workspace.mutable_data_ptr();
  cuda_call.check(cuda::launch_argmax(call.params, cuda_call.card(), cuda_call.stream()));
}

}  // namespace
}  // namespace flashint8::ops

STABLE_TORCH_LIBRARY_IMPL(flashint8, CUDA, m) {
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
