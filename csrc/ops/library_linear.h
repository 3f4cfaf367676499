// The 16-bit product of torch's library on converted weights: LinearKernel::kLibrary.
#pragma once

#include "cuda_device.h"
#include "flashint8/plan.h"

namespace flashint8::ops {

// Converts plan.block_n channels at a time into params.workspace and multiplies them with
// aten::linear, into their columns of params.out. `x` is the op's tensor (for dtype and device).
void library_linear(const Int8LinearParams& params, const LinearPlan& plan, const TensorView& x,
                    const CudaCall& call);

}  // namespace flashint8::ops
