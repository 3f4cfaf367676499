// Clears the flags of streamed tiles (sm90_sums.cuh), ahead of the gemm that raises them.
#include <cuda_runtime.h>

#include "../device/dependent_launch.cuh"
#include "../launch_kernel.cuh"
#include "launch.cuh"
#include "variants.h"

namespace flashint8::cuda {

struct Sm90Flags {
  uint4* flags;
  int count;
};

__global__ void __launch_bounds__(1024)
    int8_linear_sm90_flags_kernel(const __grid_constant__ Sm90Flags p) {
  allow_dependent_launch();
  wait_for_prerequisite();
  for (int i = threadIdx.x; i < p.count; i += blockDim.x) p.flags[i] = make_uint4(0, 0, 0, 0);
}

cudaError_t clear_sm90_flags(const Int8LinearParams& params, const LinearPlan& plan,
                             cudaStream_t stream) {
  const int64_t bytes = sm90_flag_bytes(plan.num_blocks);
  auto* flags = static_cast<uint8_t*>(params.workspace) + plan.workspace_bytes - bytes;
  const int count = static_cast<int>(bytes / 16);
  return launch_kernel(int8_linear_sm90_flags_kernel, 1, 1024, 0, plan.dependent_launch, stream,
                       Sm90Flags{reinterpret_cast<uint4*>(flags), count});
}

}  // namespace flashint8::cuda
