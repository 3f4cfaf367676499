// Launches the Hopper gemm: describes weights and x to the copy engine, and forms clusters.
#pragma once

#include <cuda_runtime.h>

#include "../function_attributes.cuh"
#include "../tensor_map.h"
#include "gemm_sm90.cuh"
#include "launch.cuh"

namespace flashint8::cuda {

// Boxes of `box_rows` x kSm90BlockK elements of a row-major matrix, rows row_bytes apart.
inline cudaError_t describe_matrix(CUtensorMap* map, CUtensorMapDataType type,
                                   CUtensorMapSwizzle swizzle, const void* data, int64_t rows,
                                   int64_t columns, int64_t row_bytes, int box_rows) {
  const int64_t sizes[2] = {columns, rows};
  const int box[2] = {kSm90BlockK, box_rows};
  return describe_tensor(map, type, swizzle, data, 2, sizes, &row_bytes, box);
}

template <typename T, int kTile>
cudaError_t launch_sm90_of(const Int8LinearParams& p, const LinearPlan& plan, cudaStream_t stream) {
  constexpr Sm90Tile kShape = kSm90Tiles[kTile];
  constexpr auto kKernel = &int8_linear_sm90_kernel<T, kTile>;
  constexpr int kBytes = sm90_shared_bytes(kShape);
  if (const cudaError_t error = allow_shared_memory<kKernel>(kBytes)) return error;
  CUtensorMap map_w, map_x;
  if (const cudaError_t error =
          describe_matrix(&map_w, CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_SWIZZLE_64B,
                          p.weight, p.n, p.k, p.weight_stride, kSm90BlockN)) {
    return error;
  }
  if (const cudaError_t error =
          describe_matrix(&map_x, CU_TENSOR_MAP_DATA_TYPE_UINT16, CU_TENSOR_MAP_SWIZZLE_128B, p.x,
                          p.m, p.k, 2 * p.x_rows.stride[3], kShape.block_m / plan.cluster)) {
    return error;
  }
  const Sm90Schedule schedule = sm90_schedule(p, kShape.block_m, plan.cluster, plan.num_splits);
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(plan.cluster * plan.num_splits), 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(plan.num_blocks));
  config.blockDim = dim3(kSm90Threads);
  config.dynamicSmemBytes = kBytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = plan.dependent_launch ? 2 : 1;
  return cudaLaunchKernelEx(&config, kKernel, p, map_w, map_x, schedule);
}

template <int kTile>
cudaError_t launch_sm90(const Int8LinearParams& params, const LinearPlan& plan,
                        cudaStream_t stream) {
  return params.dtype == DType::kFloat16
             ? launch_sm90_of<__half, kTile>(params, plan, stream)
             : launch_sm90_of<__nv_bfloat16, kTile>(params, plan, stream);
}

}  // namespace flashint8::cuda
