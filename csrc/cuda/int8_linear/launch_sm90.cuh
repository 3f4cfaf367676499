// Launches the Hopper gemm: describes weights and x to the copy engine, and forms clusters.
#pragma once

#include <cuda_runtime.h>

#include "../flag_value.h"
#include "../function_attributes.cuh"
#include "../launch_kernel.cuh"
#include "../tensor_map.h"
#include "gemm_sm90.cuh"
#include "launch.cuh"

namespace flashint8::cuda {

// Boxes of `box_rows` rows of 128 bytes, swizzled, of a row-major matrix whose elements have
// `element_bytes` (1 or 2) and whose rows begin row_bytes apart.
inline cudaError_t describe_matrix(CUtensorMap* map, int element_bytes, const void* data,
                                   int64_t rows, int64_t columns, int64_t row_bytes, int box_rows) {
  constexpr int kBoxBytes = 128;
  const CUtensorMapDataType type =
      element_bytes == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_UINT16;
  const int64_t sizes[2] = {columns, rows};
  // A single row's stride means nothing, and need not be one that the copy engine takes.
  const int64_t stride = rows > 1 ? row_bytes : 16;
  const int box[2] = {kBoxBytes / element_bytes, box_rows};
  return describe_tensor(map, type, CU_TENSOR_MAP_SWIZZLE_128B, data, 2, sizes, &stride, box);
}

template <typename T, int kTile>
cudaError_t launch_sm90_of(const Int8LinearParams& p, const LinearPlan& plan, cudaStream_t stream) {
  constexpr Sm90Tile kShape = kSm90Tiles[kTile];
  constexpr auto kKernel = &int8_linear_gemm_sm90_kernel<T, kTile>;
  constexpr int kBytes = sm90_shared_bytes(kShape);
  if (const cudaError_t error = allow_shared_memory<kKernel>(kBytes)) return error;
  Sm90Schedule schedule = sm90_schedule(p, kShape, plan);
  if (plan.streamed_tiles > 0) {
    schedule.raised = draw_flag_value();
    if (const cudaError_t error = clear_flags_if_asked(p.workspace, plan.workspace_bytes,
                                                       sm90_flag_bytes(plan.num_blocks), stream)) {
      return error;
    }
  }
  CUtensorMap map_w, map_x;
  if (const cudaError_t error =
          describe_matrix(&map_w, 1, p.weight, p.n, p.k, p.weight_stride, kSm90BlockN)) {
    return error;
  }
  if (const cudaError_t error =
          describe_matrix(&map_x, 2, p.x, p.m, p.k, 2 * p.x_rows.stride[3], schedule.box_rows)) {
    return error;
  }
  const auto parts = static_cast<unsigned>(plan.num_splits);
  const dim3 grid(static_cast<unsigned>(plan.num_blocks) / parts, parts);
  const dim3 cluster(static_cast<unsigned>(plan.cluster), parts);
  return launch_clusters(kKernel, {grid, kSm90Threads, kBytes, plan.dependent_launch}, cluster,
                         stream, p, map_w, map_x, schedule);
}

template <int kTile>
cudaError_t launch_sm90(const Int8LinearParams& params, const LinearPlan& plan,
                        cudaStream_t stream) {
  return params.dtype == DType::kFloat16
             ? launch_sm90_of<__half, kTile>(params, plan, stream)
             : launch_sm90_of<__nv_bfloat16, kTile>(params, plan, stream);
}

}  // namespace flashint8::cuda
