// Checks the arguments of the decoder's small operators (rope_append_: cache_args.h), allocates
// their outputs and fills the kernels' params. Shared by the CPU and the CUDA ops.
#pragma once

#include <optional>

#include "flashint8/decoder.h"
#include "tensor_view.h"

namespace flashint8::ops {

struct AddNormCall {
  AddNormParams params;
  Tensor out;
  TensorView residual;
};

struct SiluMulCall {
  SiluMulParams params;
  Tensor out;
  TensorView gate_up;
};

struct EmbedCall {
  EmbedParams params;
  TensorView out;
};

struct ArgmaxCall {
  ArgmaxParams params;
  TensorView x;
};

// All throw std::invalid_argument, naming the argument, what was expected and what came.
AddNormCall prepare_add_norm(const Tensor& residual, const std::optional<Tensor>& x,
                             const Tensor& weight, const std::optional<Tensor>& bias, double eps,
                             bool rms);
SiluMulCall prepare_silu_mul(const Tensor& gate_up);
EmbedCall prepare_embed(const Tensor& out, const Tensor& tokens, const Tensor& weight,
                        const Tensor& weight_scale, const std::optional<Tensor>& positions,
                        const std::optional<Tensor>& position_weight);
ArgmaxCall prepare_argmax(const Tensor& out, const Tensor& x,
                          const std::optional<Tensor>& positions);

// Nothing to do.
inline bool is_empty(const AddNormParams& p) { return p.rows == 0 || p.columns == 0; }
inline bool is_empty(const SiluMulParams& p) { return p.rows == 0 || p.columns == 0; }
inline bool is_empty(const EmbedParams& p) { return p.batch * p.seq_len * p.columns == 0; }

}  // namespace flashint8::ops
