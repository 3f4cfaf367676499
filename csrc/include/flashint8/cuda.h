// Entry points of csrc/cuda. They allocate nothing, never synchronise, and run on `stream`, whose
// device is the current one. Empty problems are the caller's (csrc/ops) to skip.
#pragma once

#include <cuda_runtime_api.h>

#include "flashint8/decoder.h"
#include "flashint8/plan.h"

namespace flashint8::cuda {

cudaError_t launch_attention_fwd(const AttentionParams& params, const AttentionPlan& plan,
                                 cudaStream_t stream);

cudaError_t launch_int8_linear(const Int8LinearParams& params, const LinearPlan& plan,
                               cudaStream_t stream);

// The first step of LinearKernel::kLibrary: channels [first, first + count) of the weight, times
// their scales, rounded to params.dtype, to params.workspace as (count, k) contiguous.
cudaError_t launch_dequantize(const Int8LinearParams& params, int64_t first, int64_t count,
                              cudaStream_t stream);

// Writes the first row that holds a NaN or an infinity, or INT32_MAX, to *bad_row (device memory,
// set to INT32_MAX by the caller).
cudaError_t launch_quantize_per_channel(const QuantizeParams& params, int32_t* bad_row,
                                        cudaStream_t stream);

// No plan: 16-byte accesses where every pointer and row allows it, single elements otherwise.
cudaError_t launch_rope_append(const RopeAppendParams& params, const Card& card,
                               cudaStream_t stream);
cudaError_t launch_add_norm(const AddNormParams& params, const Card& card, cudaStream_t stream);
cudaError_t launch_silu_mul(const SiluMulParams& params, const Card& card, cudaStream_t stream);
cudaError_t launch_embed(const EmbedParams& params, const Card& card, cudaStream_t stream);
cudaError_t launch_argmax(const ArgmaxParams& params, const Card& card, cudaStream_t stream);

}  // namespace flashint8::cuda
