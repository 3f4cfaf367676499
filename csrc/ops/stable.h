// The only door to torch: its stable C++ ABI, held to what torch 2.10 offers, so that one op
// library serves every torch >= 2.10. Include this, never a torch header directly.
#pragma once

// Defined here and not with -D: pybind11 headers of older torch versions refuse it.
#define TORCH_TARGET_VERSION (((0ULL + 2) << 56) | ((0ULL + 10) << 48))

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace flashint8::ops {

using torch::stable::Tensor;

}  // namespace flashint8::ops
