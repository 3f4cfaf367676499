// Rows in chunks of 16 bytes, or of one element where a tensor does not lie so.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <cstdint>

#include "../device/convert.cuh"
#include "flashint8/types.h"

namespace flashint8::cuda {

constexpr int kWide = 8;  // elements of 16 bytes

// kWidth elements of T as they lie in memory.
template <typename T, int kWidth>
struct Chunk;

template <typename T>
struct Chunk<T, kWide> {
  uint4 bits;

  __device__ __forceinline__ void load(const T* p) { bits = *reinterpret_cast<const uint4*>(p); }
  __device__ __forceinline__ void store(T* p) const { *reinterpret_cast<uint4*>(p) = bits; }
  __device__ __forceinline__ void unpack(float (&x)[kWide]) const {
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = unpack2(words[i], T{});
      x[2 * i] = pair.x;
      x[2 * i + 1] = pair.y;
    }
  }
  __device__ __forceinline__ void pack(const float (&x)[kWide]) {
    bits = make_uint4(pack2<T>(x[0], x[1]), pack2<T>(x[2], x[3]), pack2<T>(x[4], x[5]),
                      pack2<T>(x[6], x[7]));
  }
};

template <typename T>
struct Chunk<T, 1> {
  T value;

  __device__ __forceinline__ void load(const T* p) { value = *p; }
  __device__ __forceinline__ void store(T* p) const { *p = value; }
  __device__ __forceinline__ void unpack(float (&x)[1]) const { x[0] = to_float(value); }
  __device__ __forceinline__ void pack(const float (&x)[1]) { value = from_float<T>(x[0]); }
};

// kWidth floats; 16-byte loads where there is more than one.
template <int kWidth>
__device__ __forceinline__ void load_floats(const float* p, float (&x)[kWidth]) {
  if constexpr (kWidth == 1) {
    x[0] = *p;
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; i += 4) {
      const float4 v = *reinterpret_cast<const float4*>(p + i);
      x[i] = v.x, x[i + 1] = v.y, x[i + 2] = v.z, x[i + 3] = v.w;
    }
  }
}

inline bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Every row begins on 16 bytes, if the tensor does.
inline bool is_aligned(const RowLayout& rows) {
  bool aligned = true;
  for (int d = 0; d < 4; ++d) aligned &= rows.size[d] == 1 || rows.stride[d] % kWide == 0;
  return aligned;
}

// blockIdx.x a row, blockIdx.y a piece of it; a kernel goes round where there are more pieces. More
// rows than a grid takes give one that the launch refuses.
inline dim3 row_grid(int64_t rows, int64_t pieces) {
  constexpr int64_t kMaxPieces = 65535;
  return dim3(rows <= INT_MAX ? static_cast<unsigned>(rows) : 0,
              static_cast<unsigned>(pieces < kMaxPieces ? pieces : kMaxPieces));
}

}  // namespace flashint8::cuda
