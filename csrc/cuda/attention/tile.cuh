// Tiles of keys, values or queries in shared memory: rows of kHeadDim 16-bit elements.
#pragma once

#include <cstdint>

#include "../device/cp_async.cuh"
#include "../device/shared_memory.cuh"

namespace flashint8::cuda {

// Rows are cut into 16-byte chunks. ldmatrix reads 8 consecutive rows at one chunk column, so chunk
// c of row r lies at c ^ swizzle(r), which spreads those 8 reads over all 32 banks: rows of a
// multiple of 128 bytes start in the same bank (8 values are needed), other rows (64 or 192 bytes)
// alternate between two halves (4 values, changing every second row).
template <int kHeadDim>
struct TileLayout {
  static_assert(kHeadDim % 32 == 0, "a row is a multiple of 64 bytes");
  static constexpr int kChunks = kHeadDim / 8;
  static constexpr int kRowBytes = kHeadDim * 2;

  __device__ static constexpr int swizzle(int row) {
    return kRowBytes % 128 == 0 ? row & 7 : (row >> 1) & 3;
  }
  // Byte offset of chunk `chunk` of row `row`.
  __device__ static constexpr uint32_t offset(int row, int chunk) {
    return row * kRowBytes + ((chunk ^ swizzle(row)) << 4);
  }
};

// The rows of one head of one batch row in global memory.
template <typename T>
struct RowSource {
  const T* base;   // row 0
  int64_t stride;  // elements between rows
  int begin;       // rows outside [begin, end) are read as zeros, and never touched
  int end;
  int head_dim;  // elements past it are zeros
};

// Copies rows [row0, row0 + kRows) into the tile at `tile`, with kThreads threads numbered
// `thread`. kVectorized: 16-byte asynchronous copies (the caller commits and waits); every row
// 16-byte aligned. Otherwise: plain loads of single elements, done when the thread returns.
template <int kHeadDim, int kRows, int kThreads, bool kVectorized, typename T>
__device__ __forceinline__ void load_tile(uint32_t tile, const RowSource<T>& source, int row0,
                                          int thread) {
  using Layout = TileLayout<kHeadDim>;
  // Threads of a row: the next power of two, so that a thread keeps one chunk column.
  constexpr int kSlots = Layout::kChunks <= 4    ? 4
                         : Layout::kChunks <= 8  ? 8
                         : Layout::kChunks <= 16 ? 16
                                                 : 32;
  constexpr int kRowsPerPass = kThreads / kSlots;
  static_assert(kThreads % kSlots == 0);
  const int chunk = thread % kSlots;
  const int first_row = thread / kSlots;
  if (kSlots != Layout::kChunks && chunk >= Layout::kChunks) return;
  const bool column_valid = chunk * 8 < source.head_dim;
  const T* pointer = source.base + (row0 + first_row) * source.stride + chunk * 8;
  const int64_t step = kRowsPerPass * source.stride;
  constexpr int kPasses = (kRows + kRowsPerPass - 1) / kRowsPerPass;
  // Addresses kept ahead cost registers, of which a head_dim of 256 has none to spare.
  constexpr int kUnroll = !kVectorized ? 1 : kHeadDim == 256 ? 2 : kPasses;
#pragma unroll(kUnroll)
  for (int pass = 0; pass < kPasses; ++pass) {
    const int r = first_row + pass * kRowsPerPass;
    if (kRows % kRowsPerPass != 0 && r >= kRows) break;
    const int row = row0 + r;
    const bool valid = column_valid && row >= source.begin && row < source.end;
    const uint32_t destination = tile + Layout::offset(r, chunk);
    if constexpr (kVectorized) {
      cp_async_16(destination, valid ? pointer : source.base, valid);
    } else {
      uint32_t words[4] = {0, 0, 0, 0};
      if (valid) {
        const auto* elements = reinterpret_cast<const unsigned short*>(pointer);
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          words[w] = elements[2 * w] | (static_cast<uint32_t>(elements[2 * w + 1]) << 16);
        }
      }
      store_shared_16(destination, make_uint4(words[0], words[1], words[2], words[3]));
    }
    pointer += step;
  }
}

// Multiplies `bytes` of fp16 values in shared memory by `factor`, with kThreads threads.
template <int kThreads>
__device__ __forceinline__ void scale_half_tile(uint32_t tile, int bytes, float factor,
                                                int thread) {
  const __half2 factors = __float2half2_rn(factor);
  for (int offset = 16 * thread; offset < bytes; offset += 16 * kThreads) {
    uint4 value = load_shared_16(tile + offset);
    auto* pairs = reinterpret_cast<__half2*>(&value);
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = __hmul2(pairs[i], factors);
    store_shared_16(tile + offset, value);
  }
}

}  // namespace flashint8::cuda
