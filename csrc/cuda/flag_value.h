// What a raised flag of a launch holds (device/global_flag.cuh).
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <random>

namespace flashint8::cuda {

// 64 bits that no memory holds by chance, others for every call and process: splitmix64 (Steele,
// Lea, Flood, "Fast splittable pseudorandom number generators", 2014) from a random start.
inline uint64_t draw_flag_value() {
  static std::atomic<uint64_t> count{uint64_t{std::random_device()()} << 32 |
                                     std::random_device()()};
  uint64_t z = count.fetch_add(0x9e3779b97f4a7c15, std::memory_order_relaxed);
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

// A flag is read before anyone has written it, which compute-sanitizer's initcheck reports: with
// FLASHINT8_CLEAR_FLAGS set in the environment they are cleared ahead of the kernel. They are the
// last flag_bytes of a workspace of workspace_bytes.
inline cudaError_t clear_flags_if_asked(void* workspace, int64_t workspace_bytes,
                                        int64_t flag_bytes, cudaStream_t stream) {
  static const bool asked = std::getenv("FLASHINT8_CLEAR_FLAGS") != nullptr;
  if (!asked) return cudaSuccess;
  auto* flags = static_cast<uint8_t*>(workspace) + workspace_bytes - flag_bytes;
  return cudaMemsetAsync(flags, 0, static_cast<size_t>(flag_bytes), stream);
}

}  // namespace flashint8::cuda
