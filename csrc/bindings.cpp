// flashint8._C: what was built, and which kernel a call will run. Knows no tensors and no torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "flashint8/build_info.h"
#include "flashint8/cpu.h"
#include "flashint8/decoder.h"
#include "flashint8/plan.h"
#include "flashint8/targets.h"

namespace py = pybind11;

namespace flashint8 {
namespace {

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> words;
  while (!text.empty()) {
    const size_t end = text.find(separator);
    if (end != 0) words.emplace_back(text.substr(0, end));
    if (end == std::string_view::npos) break;
    text.remove_prefix(end + 1);
  }
  return words;
}

py::dict build_info() {
  py::dict info;
  info["version"] = kVersion;
  info["cuda"] = kCudaToolkit[0] != '\0';
  info["cuda_toolkit"] = kCudaToolkit;
  info["cuda_architectures"] = split(kCudaArchitectures, ' ');
  info["compiler"] = kCompiler;
  info["torch"] = kTorchVersion;
  info["cpu_isa_built"] = split(kCpuIsas, ',');
  return info;
}

DType parse_dtype(const char* op, const std::string& name) {
  if (name == "float16") return DType::kFloat16;
  if (name == "bfloat16") return DType::kBFloat16;
  throw std::invalid_argument(std::string(op) +
                              ": dtype must be float16 or bfloat16 on CUDA, got " + name);
}

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return "float32";
    case DType::kFloat16: return "float16";
    case DType::kBFloat16: return "bfloat16";
  }
  return "unknown";
}

// Throws where `value` is below `least`; the plans take what csrc/ops has checked.
void require(const char* op, const char* name, int64_t value, int64_t least) {
  if (value >= least) return;
  throw std::invalid_argument(std::string(op) + ": " + name + " must be at least " +
                              std::to_string(least) + ", got " + std::to_string(value));
}

Card make_card(const char* op, int compute_capability, int sm_count, int shared_memory_per_block) {
  require(op, "compute_capability", compute_capability, 1);
  require(op, "sm_count", sm_count, 1);
  require(op, "shared_memory_per_block", shared_memory_per_block, 1);
  // What the card would run of this build; where nothing was built for it, code of its own.
  const int code = code_version(kCudaArchitectures, compute_capability);
  return {.compute_capability = compute_capability,
          .sm_count = sm_count,
          .shared_memory_per_block = shared_memory_per_block,
          .code = code > 0 ? code : compute_capability,
          .own_code = code == 0 || has_own_code(kCudaArchitectures, compute_capability)};
}

// A plan reads a pointer's alignment and nothing behind it.
const void* address(bool vectorized) {
  return reinterpret_cast<const void*>(static_cast<std::uintptr_t>(vectorized ? 256 : 258));
}

// (batch, heads, seq, head_dim) contiguous.
AttentionStrides contiguous(int64_t heads, int64_t seq, int64_t head_dim) {
  return {.batch = heads * seq * head_dim, .head = seq * head_dim, .seq = head_dim};
}

py::dict attention_plan(int64_t batch, int64_t num_heads, int64_t num_kv_heads, int64_t seq_len_q,
                        int64_t seq_len_kv, int64_t head_dim, const std::string& dtype, int causal,
                        int64_t window, bool fp16_accumulate, bool ragged, bool vectorized,
                        bool expanded, bool appends, bool append_vectorized, int64_t rotary_dim,
                        bool interleaved, int compute_capability, int sm_count,
                        int shared_memory_per_block) {
  constexpr char kOp[] = "attention";
  require(kOp, "batch", batch, 1);
  require(kOp, "num_kv_heads", num_kv_heads, 1);
  require(kOp, "num_heads", num_heads, 1);
  require(kOp, "seq_len_q", seq_len_q, 1);
  require(kOp, "seq_len_kv", seq_len_kv, 0);
  require(kOp, "head_dim", head_dim, 1);
  if (num_heads % num_kv_heads != 0) {
    throw std::invalid_argument("attention: q has " + std::to_string(num_heads) +
                                " heads, not a multiple of k's " + std::to_string(num_kv_heads));
  }
  if (head_dim > 256) {
    throw std::invalid_argument("attention: head_dim must be at most 256, got " +
                                std::to_string(head_dim));
  }
  if (head_dim % 8 != 0) {
    throw std::invalid_argument("attention: head_dim must be a multiple of 8 on CUDA, got " +
                                std::to_string(head_dim));
  }
  if (causal < 0 || causal > 2) {
    throw std::invalid_argument("attention: causal must be 0, 1 or 2, got " +
                                std::to_string(causal));
  }
  if (window != -1 && window < 1) {
    throw std::invalid_argument("attention: window must be -1 or positive, got " +
                                std::to_string(window));
  }
  if (window > 0 && causal == 0) {
    throw std::invalid_argument("attention: window needs causal 1 or 2, got causal 0");
  }

  AttentionParams params;
  params.dtype = parse_dtype(kOp, dtype);
  params.q = params.k = params.v = address(vectorized);
  params.out = const_cast<void*>(address(vectorized));
  params.batch = batch;
  params.num_heads = num_heads;
  params.num_kv_heads = num_kv_heads;
  params.seq_len_q = seq_len_q;
  params.seq_len_kv = seq_len_kv;
  params.head_dim = head_dim;
  params.q_stride = params.out_stride = contiguous(num_heads, seq_len_q, head_dim);
  params.k_stride = params.v_stride = contiguous(num_kv_heads, seq_len_kv, head_dim);
  params.causal = static_cast<Causal>(causal);
  params.window = window;
  params.scale = 1.0f;
  params.fp16_accumulate = fp16_accumulate;
  if (ragged) params.kv_lengths = static_cast<const int32_t*>(address(true));
  if (expanded) params.k_stride = AttentionStrides{};
  RopeAppendParams token;
  if (appends) {
    token.k = token.v = address(append_vectorized);
    if (rotary_dim > 0) token.cos_sin = static_cast<const float*>(address(append_vectorized));
    token.rotary_dim = rotary_dim;
    token.interleaved = interleaved;
    params.append = &token;
  }
  const AttentionPlan plan =
      plan_attention(params, make_card(kOp, compute_capability, sm_count, shared_memory_per_block));

  py::dict fields;
  fields["kernel"] = plan.kernel == AttentionKernel::kPrefill  ? "prefill"
                     : plan.kernel == AttentionKernel::kDecode ? "decode"
                                                               : "prefill_sm90";
  fields["dtype"] = dtype_name(plan.dtype);
  fields["head_dim"] = plan.head_dim;
  fields["block_m"] = plan.block_m;
  fields["block_n"] = plan.block_n;
  fields["num_warps"] = plan.num_warps;
  fields["stages"] = plan.stages;
  fields["vectorized"] = plan.vectorized;
  fields["num_splits"] = plan.num_splits;
  if (appends) fields["appends"] = plan.appends;
  fields["dependent_launch"] = plan.dependent_launch;
  fields["early_trigger"] = plan.early_trigger;
  fields["num_blocks"] = plan.num_blocks;
  fields["shared_bytes"] = plan.shared_bytes;
  fields["workspace_bytes"] = plan.workspace_bytes;
  return fields;
}

py::dict int8_linear_plan(int64_t m, int64_t n, int64_t k, const std::string& dtype,
                          const std::optional<std::string>& activation, bool vectorized,
                          bool plain_rows, int compute_capability, int sm_count,
                          int shared_memory_per_block) {
  constexpr char kOp[] = "int8_linear";
  require(kOp, "m", m, 1);
  require(kOp, "n", n, 1);
  require(kOp, "k", k, 0);

  Int8LinearParams params;
  if (activation) params.activation = parse_activation(*activation);
  params.dtype = parse_dtype(kOp, dtype);
  params.x = address(vectorized);
  params.weight = static_cast<const int8_t*>(address(vectorized));
  params.weight_scale = static_cast<const float*>(address(true));
  params.out = const_cast<void*>(address(vectorized));
  params.x_rows.size[3] = m;
  const int64_t pitch = vectorized ? ceil_div(k, 16) * 16 : k;  // of rows: any that is aligned
  params.x_rows.stride[3] = pitch;
  if (!plain_rows) params.x_rows.size[2] = 2;  // rows in two runs, or more
  params.weight_stride = pitch;
  params.m = m;
  params.n = n;
  params.k = k;
  const LinearPlan plan = plan_int8_linear(
      params, make_card(kOp, compute_capability, sm_count, shared_memory_per_block));

  py::dict fields;
  fields["kernel"] = plan.kernel == LinearKernel::kGemv       ? "gemv"
                     : plan.kernel == LinearKernel::kGemvSm90 ? "gemv_sm90"
                     : plan.kernel == LinearKernel::kGemm     ? "gemm"
                     : plan.kernel == LinearKernel::kGemmSm90 ? "gemm_sm90"
                                                              : "library";
  fields["dtype"] = dtype_name(plan.dtype);
  fields["block_m"] = plan.block_m;
  fields["block_n"] = plan.block_n;
  fields["block_k"] = plan.block_k;
  fields["num_warps"] = plan.num_warps;
  fields["stages"] = plan.stages;
  fields["vectorized"] = plan.vectorized;
  fields["num_splits"] = plan.num_splits;
  fields["cluster"] = plan.cluster;
  fields["streamed_tiles"] = plan.streamed_tiles;
  fields["dependent_launch"] = plan.dependent_launch;
  fields["num_blocks"] = plan.num_blocks;
  fields["shared_bytes"] = plan.shared_bytes;
  fields["workspace_bytes"] = plan.workspace_bytes;
  return fields;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  using py::arg;
  module.doc() = "What was built, and which kernel a call will run.";
  module.def("build_info", &build_info, "Version, compilers, architectures of this build.");
  module.def("cpu_isa", &cpu::isa_name, "The instruction set the CPU kernels use here.");
  module.def(
      "cpu_isa_supported", [] { return split(cpu::isa_supported(), ','); },
      "The instruction sets this machine runs, widest last.");
  module.def("attention_plan", &attention_plan, py::kw_only(), arg("batch"), arg("num_heads"),
             arg("num_kv_heads"), arg("seq_len_q"), arg("seq_len_kv"), arg("head_dim"),
             arg("dtype"), arg("causal"), arg("window"), arg("fp16_accumulate") = false,
             arg("ragged") = false, arg("vectorized") = true, arg("expanded") = false,
             arg("appends") = false, arg("append_vectorized") = true, arg("rotary_dim") = 0,
             arg("interleaved") = false, arg("compute_capability"), arg("sm_count"),
             arg("shared_memory_per_block"),
             "The CUDA kernel, tile and splits of an attention call, as a dict.");
  module.def("int8_linear_plan", &int8_linear_plan, py::kw_only(), arg("m"), arg("n"), arg("k"),
             arg("dtype"), arg("activation") = py::none(), arg("vectorized") = true,
             arg("plain_rows") = true, arg("compute_capability"), arg("sm_count"),
             arg("shared_memory_per_block"),
             "The CUDA kernel, tile and splits of an int8_linear call, as a dict.");
}

}  // namespace flashint8
