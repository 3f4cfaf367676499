// The launchers of the instantiations, by index in variants.h, and of the sum over splits.
#pragma once

#include <cuda_runtime_api.h>

#include "flashint8/plan.h"

namespace flashint8::cuda {

template <int kTile>
cudaError_t launch_gemv(const Int8LinearParams& params, const LinearPlan& plan,
                        cudaStream_t stream);

// With plan.num_splits > 1 it fills the workspace; launch_split_sum finishes.
template <int kTile>
cudaError_t launch_gemm(const Int8LinearParams& params, const LinearPlan& plan,
                        cudaStream_t stream);

cudaError_t launch_split_sum(const Int8LinearParams& params, const LinearPlan& plan,
                             cudaStream_t stream);

// These two only where code for sm_90a is built.
template <int kTile>
cudaError_t launch_gemv_sm90(const Int8LinearParams& params, const LinearPlan& plan,
                             cudaStream_t stream);
template <int kTile>
cudaError_t launch_sm90(const Int8LinearParams& params, const LinearPlan& plan,
                        cudaStream_t stream);

}  // namespace flashint8::cuda
