// Launches a kernel that reads nothing before wait_for_prerequisite(): on cards that can (sm_90) it
// is brought onto the chip while the kernel before it in the stream still runs.
#pragma once

#include <cuda_runtime.h>

#include <climits>

#include "flashint8/types.h"

namespace flashint8::cuda {

// Blocks (rows, pieces of a row); a kernel goes round where there are more pieces than blocks.
template <typename Params>
cudaError_t launch_dependent(void (*kernel)(Params), const Params& params, int64_t rows,
                             int64_t pieces, int threads, const Card& card, cudaStream_t stream) {
  constexpr int64_t kMaxPieces = 65535;
  if (rows > INT_MAX) return cudaErrorInvalidConfiguration;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(rows),
                        static_cast<unsigned>(pieces < kMaxPieces ? pieces : kMaxPieces));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = card.code >= 90 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, params);
}

}  // namespace flashint8::cuda
