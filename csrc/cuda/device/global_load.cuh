// Reads of global memory with a word on what is read again.
#pragma once

#include <cstdint>

namespace flashint8::cuda {

__device__ __forceinline__ uint32_t word_of(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// 16 bytes that are read once by the whole grid, such as weights: not kept in L1, first to leave
// L2, and 256 bytes fetched into L2 at once, since a neighbour reads the rest of them. Into `v`
// where `exists`; else `v` stays as it is. The load itself is predicated.
__device__ __forceinline__ void load_streaming_16_if(bool exists, uint4& v, const void* source,
                                                     uint64_t policy) {
  asm volatile(
      "{\n.reg .pred exists;\nsetp.ne.b32 exists, %6, 0;\n"
      "@exists ld.global.nc.L1::no_allocate.L2::cache_hint.L2::256B.v4.b32 {%0, %1, %2, %3}, [%4], "
      "%5;\n}"
      : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
      : "l"(source), "l"(policy), "r"(static_cast<int>(exists)));
}

__device__ __forceinline__ uint4 load_streaming_16(const void* source, uint64_t policy) {
  uint4 v = {};
  load_streaming_16_if(true, v, source, policy);
  return v;
}

// 16 bytes that this multiprocessor reads again, kept in L1, into `v` where they exist.
__device__ __forceinline__ void load_cached_16_if(bool exists, uint4& v, const void* source) {
  asm volatile(
      "{\n.reg .pred exists;\nsetp.ne.b32 exists, %5, 0;\n"
      "@exists ld.global.nc.L1::evict_last.v4.b32 {%0, %1, %2, %3}, [%4];\n}"
      : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
      : "l"(source), "r"(static_cast<int>(exists)));
}

// The first `valid` of 16 bytes (valid in 0..16), the rest zeros; no byte past them is read.
static __device__ __noinline__ uint4 load_partial_16(const void* source, int valid) {
  const auto* bytes = static_cast<const uint8_t*>(source);
  uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    if (i < valid) words[i / 4] |= static_cast<uint32_t>(bytes[i]) << (8 * (i % 4));
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// The first `valid` of the 16 bytes at `source`, of any alignment, and zeros. Reads nothing outside
// [source, source + valid): whole words where all of those that hold the 16 bytes lie in [begin,
// end).
__device__ __forceinline__ uint4 load_unaligned_16(const uint8_t* source, int valid,
                                                   const uint8_t* begin, const uint8_t* end) {
  const auto address = reinterpret_cast<uintptr_t>(source);
  const uint8_t* aligned = source - address % 4;
  if (valid < 16 || aligned < begin || aligned + 20 > end) return load_partial_16(source, valid);
  const auto* words = reinterpret_cast<const uint32_t*>(aligned);
  const uint32_t shift = 8 * (address % 4);
  uint32_t value[4];
  uint32_t word = __ldg(words);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t next = __ldg(words + i + 1);
    value[i] = __funnelshift_r(word, next, shift);
    word = next;
  }
  return make_uint4(value[0], value[1], value[2], value[3]);
}

}  // namespace flashint8::cuda
