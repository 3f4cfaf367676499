// The launchers of the attention kernels, one for each instantiation.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "flashint8/attention.h"
#include "flashint8/plan.h"
#include "variants.h"

namespace flashint8::cuda {

// kIndex: row of kPrefillVariants.
template <typename T, int kIndex>
cudaError_t launch_prefill(const AttentionParams& params, const AttentionPlan& plan,
                           cudaStream_t stream);

// kTile: row of kSm90PrefillTiles.
template <typename T, int kTile>
cudaError_t launch_prefill_sm90(const AttentionParams& params, const AttentionPlan& plan,
                                cudaStream_t stream);

// Unaligned pointers or strides: kVectorized = false.
template <typename T, int kHeadDim, bool kVectorized>
cudaError_t launch_decode(const AttentionParams& params, const AttentionPlan& plan,
                          cudaStream_t stream);

// How many heads (over all batch rows) run together, so that their keys and values share L2.
inline int heads_per_section(const AttentionParams& params) {
  constexpr int64_t kBytes = int64_t{16} << 20;
  const int64_t all = params.num_heads * params.batch;
  const int64_t group = params.num_heads / params.num_kv_heads;
  const int64_t head_bytes = 4 * params.seq_len_kv * params.head_dim;  // 16-bit keys and values
  const int64_t fit = head_bytes > 0 ? kBytes / head_bytes * group : all;
  return static_cast<int>(fit < group ? (group < all ? group : all) : (fit < all ? fit : all));
}

}  // namespace flashint8::cuda
