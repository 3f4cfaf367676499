// The GPU a call runs on: its numbers for the plan, its stream, and errors turned into exceptions.
#pragma once

#include <cuda_runtime_api.h>

#include <optional>

#include "flashint8/types.h"
#include "tensor_view.h"

namespace flashint8::ops {

// Makes the tensor's device the current one for as long as it lives. Reads the device's numbers
// once a process. Throws std::runtime_error where nothing built can run on it, naming the
// architecture, what was built and how to rebuild.
class CudaCall {
 public:
  CudaCall(const char* op, const TensorView& tensor);

  const Card& card() const { return *card_; }
  cudaStream_t stream() const { return stream_; }
  // Throws std::runtime_error naming the operator and CUDA's own word.
  void check(cudaError_t error) const;

 private:
  const char* op_;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  const Card* card_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

}  // namespace flashint8::ops
