// Dynamic shared memory beyond 48 KB has to be allowed, once a kernel and device.
#pragma once

#include <cuda_runtime.h>

#include <atomic>

namespace flashint8::cuda {

// kKernel as a template argument gives every kernel its own flags.
template <auto kKernel>
cudaError_t allow_shared_memory(int bytes) {
  constexpr int kMaxDevices = 64;
  static std::atomic<int> allowed[kMaxDevices];  // bytes, by device
  int device = 0;
  const cudaError_t found = cudaGetDevice(&device);
  if (found != cudaSuccess) return found;
  if (device < kMaxDevices && allowed[device].load(std::memory_order_relaxed) >= bytes) {
    return cudaSuccess;
  }
  const cudaError_t set =
      cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (set == cudaSuccess && device < kMaxDevices) {
    allowed[device].store(bytes, std::memory_order_relaxed);
  }
  return set;
}

}  // namespace flashint8::cuda
