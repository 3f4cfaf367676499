// Launches the Hopper prefill kernel. Included by the instantiations only.
#pragma once

#include "../function_attributes.cuh"
#include "../launch_kernel.cuh"
#include "../tensor_map.h"
#include "launch.h"
#include "prefill_sm90.cuh"

namespace flashint8::cuda {

// Boxes of `rows` rows x 64 columns of a (batch, heads, seq_len, head_dim) tensor of 16-bit values.
// Dimensions of one element have a stride of no meaning.
inline cudaError_t describe_heads(CUtensorMap* map, const void* data,
                                  const AttentionStrides& stride, int64_t head_dim, int64_t seq_len,
                                  int64_t heads, int64_t batch, int rows) {
  const int64_t sizes[4] = {head_dim, seq_len, heads, batch};
  const int64_t strides[3] = {stride.seq, stride.head, stride.batch};
  int64_t bytes[3];
  for (int i = 0; i < 3; ++i) bytes[i] = sizes[i + 1] > 1 ? 2 * strides[i] : 16;
  const int box[4] = {64, rows, 1, 1};
  return describe_tensor(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, CU_TENSOR_MAP_SWIZZLE_128B, data, 4,
                         sizes, bytes, box);
}

template <typename T, int kTile>
cudaError_t launch_prefill_sm90(const AttentionParams& p, const AttentionPlan& plan,
                                cudaStream_t stream) {
  constexpr Sm90PrefillTile kShape = kSm90PrefillTiles[kTile];
  constexpr auto kKernel = &prefill_sm90_kernel<T, kTile>;
  if (const cudaError_t error = allow_shared_memory<kKernel>(kShape.shared_bytes())) return error;
  Sm90PrefillMaps maps;
  if (const cudaError_t error = describe_heads(&maps.q, p.q, p.q_stride, p.head_dim, p.seq_len_q,
                                               p.num_heads, p.batch, kShape.block_m)) {
    return error;
  }
  if (const cudaError_t error = describe_heads(&maps.k, p.k, p.k_stride, p.head_dim, p.seq_len_kv,
                                               p.num_kv_heads, p.batch, kShape.block_n)) {
    return error;
  }
  if (const cudaError_t error = describe_heads(&maps.v, p.v, p.v_stride, p.head_dim, p.seq_len_kv,
                                               p.num_kv_heads, p.batch, kShape.block_n)) {
    return error;
  }
  PrefillArgs args{};
  args.params = p;
  args.num_m_blocks = static_cast<int>(ceil_div(p.seq_len_q, kShape.block_m));
  args.section = heads_per_section(p);
  args.early_trigger = plan.early_trigger;
  return launch_kernel(kKernel, static_cast<unsigned>(plan.num_blocks), kShape.threads(),
                       kShape.shared_bytes(), plan.dependent_launch, stream, args, maps);
}

}  // namespace flashint8::cuda
