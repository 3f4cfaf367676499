// One way to launch every kernel that computes.
#pragma once

#include <cuda_runtime.h>

namespace flashint8::cuda {

// dependent: the grid may be brought onto the chip while the kernel before it in the stream still
// runs (programmatic dependent launch, sm_90). Such a kernel must call wait_for_prerequisite()
// before it reads or writes anything that another kernel touches.
template <typename Params, typename... Numbers>
cudaError_t launch_kernel(void (*kernel)(Params, Numbers...), dim3 grid, int threads,
                          int64_t shared_bytes, bool dependent, cudaStream_t stream,
                          const Params& params, const Numbers&... numbers) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = dependent ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, params, numbers...);
}

}  // namespace flashint8::cuda
