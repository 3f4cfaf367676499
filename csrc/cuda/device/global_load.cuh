// Reads of global memory with a word on what is read again.
#pragma once

#include <cstdint>

namespace flashint8::cuda {

// 16 bytes that are read once by the whole grid, such as weights: not kept in L1, first to leave L2,
// and the whole 128-byte line fetched at once, since a neighbour reads the rest of it.
__device__ __forceinline__ uint4 load_streaming_16(const void* source, uint64_t policy) {
  uint4 v;
  asm volatile(
      "ld.global.nc.L1::no_allocate.L2::cache_hint.L2::128B.v4.b32 {%0, %1, %2, %3}, [%4], %5;\n"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(source), "l"(policy));
  return v;
}

// 16 bytes that this multiprocessor reads again: kept in L1.
__device__ __forceinline__ uint4 load_cached_16(const void* source) {
  uint4 v;
  asm volatile("ld.global.nc.L1::evict_last.v4.b32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(source));
  return v;
}

// The first `valid` of 16 bytes (valid in 0..15), the rest zeros; no byte past them is read.
__device__ __noinline__ uint4 load_partial_16(const void* source, int valid) {
  const auto* bytes = static_cast<const uint8_t*>(source);
  uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    if (i < valid) words[i / 4] |= static_cast<uint32_t>(bytes[i]) << (8 * (i % 4));
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

}  // namespace flashint8::cuda
