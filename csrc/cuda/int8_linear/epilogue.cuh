// From fp32 sums to the output: scale and bias in fp32, one rounding, and the turn from the tensor
// cores' channel-major fragments to the row-major output.
#pragma once

#include "../device/convert.cuh"
#include "../device/linear_ptx.cuh"
#include "flashint8/int8_linear.h"

namespace flashint8::cuda {

// Out of line: its divisions would be unrolled into every kernel's prologue.
static __device__ __noinline__ int64_t divided_row_offset(const RowLayout& rows, int64_t m) {
  return row_offset(rows, m);
}

// row_offset without a division for the usual x, whose rows are all in the innermost dimension.
__device__ __forceinline__ int64_t x_row_offset(const RowLayout& rows, int64_t m) {
  if (m < rows.size[3]) return m * rows.stride[3];
  return divided_row_offset(rows, m);
}

template <typename T>
__device__ __forceinline__ float load_bias(const void* bias, int64_t n) {
  return bias == nullptr ? 0.0f : to_float(static_cast<const T*>(bias)[n]);
}

struct ChannelPair {  // of channels n + g and n + g + 8
  float scale[2];
  float bias[2];
};

// A warp's part of the output, seen from one lane: fragment (i, j) is channels 16i .. 16i+15 and
// rows 8j .. 8j+7 of it.
template <typename T>
class OutputTile {
 public:
  __device__ __forceinline__ OutputTile(const Int8LinearParams& p, int64_t m, int64_t n, int lane)
      : row_stride_(p.n),
        rows_left_(clamp(p.m - m - lane / 4)),
        channels_left_(clamp(p.n - n - lane % 4 * 2)),
        paired_(p.n % 2 == 0 && reinterpret_cast<uintptr_t>(p.out) % 4 == 0),
        out_(static_cast<uint16_t*>(p.out) + (m + lane / 4) * p.n + n + lane % 4 * 2) {}

  // sum[channel][row], layout in mma.cuh. After the transposition lane (g, t) holds row g,
  // channels 2t, 2t + 1 and 2t + 8, 2t + 9. The whole warp calls it, also where the fragment
  // sticks out.
  __device__ __forceinline__ void store(int i, int j, const float (&sum)[4],
                                        const ChannelPair& channels) const {
    const uint32_t lower = pack2<T>(fmaf(sum[0], channels.scale[0], channels.bias[0]),
                                    fmaf(sum[1], channels.scale[0], channels.bias[0]));
    const uint32_t upper = pack2<T>(fmaf(sum[2], channels.scale[1], channels.bias[1]),
                                    fmaf(sum[3], channels.scale[1], channels.bias[1]));
    const uint32_t values[2] = {transpose_8x8(lower), transpose_8x8(upper)};
    if (8 * j >= rows_left_) return;
    uint16_t* out = out_ + j * (8 * row_stride_) + 16 * i;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int channel = 16 * i + 8 * h;
      if (paired_) {
        if (channel < channels_left_) *reinterpret_cast<uint32_t*>(out + 8 * h) = values[h];
      } else {
        if (channel < channels_left_) out[8 * h] = static_cast<uint16_t>(values[h]);
        if (channel + 1 < channels_left_) out[8 * h + 1] = static_cast<uint16_t>(values[h] >> 16);
      }
    }
  }

 private:
  static __device__ __forceinline__ int clamp(int64_t v) {
    return static_cast<int>(min(max(v, int64_t{-1}), int64_t{1} << 20));
  }

  int64_t row_stride_;
  int rows_left_, channels_left_;  // from this lane's first row and channel
  bool paired_;                    // two channels can be written as one word
  uint16_t* out_;
};

}  // namespace flashint8::cuda
