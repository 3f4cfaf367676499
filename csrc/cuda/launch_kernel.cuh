// One way to launch every kernel that computes.
#pragma once

#include <cuda_runtime.h>

namespace flashint8::cuda {

// What every launch says.
struct Launch {
  dim3 grid;
  int threads;
  int64_t shared_bytes;
  // The grid may be brought onto the chip while the kernel before it in the stream still runs
  // (programmatic dependent launch, sm_90). Such a kernel must call wait_for_prerequisite() before
  // it reads or writes anything that another kernel touches.
  bool dependent;
};

template <typename... Arguments>
cudaError_t launch_with(void (*kernel)(Arguments...), const Launch& launch, const dim3* cluster,
                        cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (cluster != nullptr) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {cluster->x, cluster->y, cluster->z};
  }
  if (launch.dependent) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = launch.grid;
  config.blockDim = dim3(static_cast<unsigned>(launch.threads));
  config.dynamicSmemBytes = static_cast<size_t>(launch.shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

template <typename Params, typename... Numbers>
cudaError_t launch_kernel(void (*kernel)(Params, Numbers...), dim3 grid, int threads,
                          int64_t shared_bytes, bool dependent, cudaStream_t stream,
                          const Params& params, const Numbers&... numbers) {
  return launch_with(kernel, {grid, threads, shared_bytes, dependent}, nullptr, stream, params,
                     numbers...);
}

// In clusters of blocks that run together and reach each other's shared memory (sm_90).
template <typename... Arguments>
cudaError_t launch_clusters(void (*kernel)(Arguments...), const Launch& launch, dim3 cluster,
                            cudaStream_t stream, const Arguments&... arguments) {
  return launch_with(kernel, launch, &cluster, stream, arguments...);
}

}  // namespace flashint8::cuda
