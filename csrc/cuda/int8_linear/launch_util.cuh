// Raising a kernel's limit of dynamic shared memory, once for each device.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>

namespace flashint8::cuda {

class SharedMemoryLimit {
 public:
  // Lets `kernel` use `bytes` of dynamic shared memory on the current device. Threads may race
  // here: each sets a limit that is large enough for all, the device's own.
  cudaError_t raise(const void* kernel, int bytes) {
    constexpr int kFreeBytes = 48 * 1024;  // needs no attribute
    if (bytes <= kFreeBytes) return cudaSuccess;
    int device = 0;
    if (const cudaError_t error = cudaGetDevice(&device)) return error;
    const bool remembered = device < kMaxDevices;
    if (remembered && raised_[device].load(std::memory_order_acquire)) return cudaSuccess;
    int limit = 0;
    if (const cudaError_t error =
            cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)) {
      return error;
    }
    cudaFuncAttributes attributes;
    if (const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel)) return error;
    if (const cudaError_t error =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 limit - static_cast<int>(attributes.sharedSizeBytes))) {
      return error;
    }
    if (remembered) raised_[device].store(true, std::memory_order_release);
    return cudaSuccess;
  }

 private:
  static constexpr int kMaxDevices = 64;
  std::atomic<bool> raised_[kMaxDevices] = {};
};

}  // namespace flashint8::cuda
