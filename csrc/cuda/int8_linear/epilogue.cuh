// From fp32 sums to the output: scale, bias and activation in fp32, one rounding, and the turn from
// the tensor cores' channel-major fragments to the row-major output.
//
// A kernel with its sums in such fragments calls store_output; one with single sums calls activate
// (device/activation.cuh) on scaled values and rounds what comes.
#pragma once

#include "../device/activation.cuh"
#include "../device/convert.cuh"
#include "../device/dependent_launch.cuh"
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

constexpr int kScalesOfLine = 32;

// Asks for the line of scales that begins with that channel's, and for that of biases: they come
// last of all to a tile's values, and would otherwise come from memory then.
template <typename T>
__device__ __forceinline__ void prefetch_channels(const Int8LinearParams& p, int64_t channel) {
  prefetch_l2_line(p.weight_scale + channel);
  if (p.bias != nullptr) prefetch_l2_line(static_cast<const T*>(p.bias) + channel);
}

// To a lane's four sums of a fragment those of another part of k.
__device__ __forceinline__ void add_fragment(float* sum, const float4& other) {
  sum[0] += other.x;
  sum[1] += other.y;
  sum[2] += other.z;
  sum[3] += other.w;
}

struct ChannelPair {  // of channels n + g and n + g + 8
  float scale[2];
  float bias[2];
};

// channel: the first of the two.
template <typename T>
__device__ __forceinline__ ChannelPair load_channels(const Int8LinearParams& p, int64_t channel) {
  ChannelPair channels;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const bool valid = channel + 8 * h < p.n;
    channels.scale[h] = valid ? p.weight_scale[channel + 8 * h] : 0.0f;
    channels.bias[h] = valid ? load_bias<T>(p.bias, channel + 8 * h) : 0.0f;
  }
  return channels;
}

// A scaled fragment of a gated product, layout in mma.cuh: lane (g, t) has channels g, g + 8 of
// rows 2t, 2t + 1. Its 16 channels become 8 columns, of which lane (g, t) gets column g in y[0],
// y[1]. A pair of channels lies in lanes (g, t), (g + 1, t), g even: the first of them takes the
// pair of channels g, g + 1, the second that of g + 8, g + 9; each sends its neighbour the half of
// the other's pair, and what comes of its own to the column's lane. The whole warp calls it.
__device__ __forceinline__ void apply_gate(float (&y)[4], int lane) {
  const bool second = lane & 4;
  const int g = lane / 4, source = (g % 4 * 2 + g / 4) * 4 + lane % 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float theirs = __shfl_xor_sync(~0u, second ? y[r] : y[2 + r], 4);
    const float mine = second ? y[2 + r] : y[r];
    const float gate = activate<Activation::kSilu>(second ? theirs : mine);
    y[r] = __shfl_sync(~0u, gate * (second ? mine : theirs), source);
  }
}

// Applies an activation, known or not, to kCount scaled fragments. One branch for all of them:
// values behind branches of their own would wait for each other's exponentials and divisions.
template <Activation kActivation, int kCount>
__device__ __forceinline__ void activate(float (&y)[kCount][4], int lane) {
#pragma unroll
  for (int f = 0; f < kCount; ++f) {
    if constexpr (kActivation == Activation::kSiluMul) {
      apply_gate(y[f], lane);
    } else {
#pragma unroll
      for (int c = 0; c < 4; ++c) y[f][c] = activate<kActivation>(y[f][c]);
    }
  }
}

template <int kCount>
__device__ __forceinline__ void activate(float (&y)[kCount][4], Activation activation, int lane) {
  switch (activation) {
    case Activation::kNone: return;
    case Activation::kGelu: return activate<Activation::kGelu>(y, lane);
    case Activation::kGeluTanh: return activate<Activation::kGeluTanh>(y, lane);
    case Activation::kSilu: return activate<Activation::kSilu>(y, lane);
    case Activation::kSiluMul: return activate<Activation::kSiluMul>(y, lane);
  }
}

// Where a warp's part of the output goes, seen from one lane: fragment (i, j) is channels 16i ..
// 16i+15 (gated: columns 8i .. 8i+7) and rows 8j .. 8j+7 of it.
template <typename T>
class OutputTile {
 public:
  __device__ __forceinline__ OutputTile(const Int8LinearParams& p, int64_t m, int64_t n, int lane)
      : gated_(p.activation == Activation::kSiluMul),
        row_stride_(out_columns(p)),
        rows_left_(clamp(p.m - m - lane / 4)) {
    const int64_t column = (gated_ ? n / 2 : n) + lane % 4 * 2;
    columns_left_ = clamp(row_stride_ - column);
    paired_ = row_stride_ % 2 == 0 && reinterpret_cast<uintptr_t>(p.out) % 4 == 0;
    out_ = static_cast<uint16_t*>(p.out) + (m + lane / 4) * row_stride_ + column;
  }

  // y: as activate leaves it. After the transposition lane (g, t) holds row g, columns 2t, 2t + 1
  // and 2t + 8, 2t + 9. The whole warp calls it, also where the fragment sticks out.
  __device__ __forceinline__ void store(int i, int j, const float (&y)[4]) const {
    const uint32_t lower = pack2<T>(y[0], y[1]), upper = pack2<T>(y[2], y[3]);
    const uint32_t values[2] = {transpose_8x8(lower), transpose_8x8(upper)};
    write(gated_ ? 8 * i : 16 * i, j, values[0]);
    if (!gated_) write(16 * i + 8, j, values[1]);
  }

 private:
  __device__ __forceinline__ void write(int column, int j, uint32_t values) const {
    if (8 * j >= rows_left_ || column >= columns_left_) return;
    uint16_t* out = out_ + j * (8 * row_stride_) + column;
    if (paired_) {
      *reinterpret_cast<uint32_t*>(out) = values;
      return;
    }
    out[0] = static_cast<uint16_t>(values);
    if (column + 1 < columns_left_) out[1] = static_cast<uint16_t>(values >> 16);
  }

  static __device__ __forceinline__ int clamp(int64_t v) {
    return static_cast<int>(min(max(v, int64_t{-1}), int64_t{1} << 20));
  }

  bool gated_;
  int64_t row_stride_;
  int rows_left_, columns_left_;  // of out, from this lane's first row and column
  bool paired_;                   // two columns can be written as one word
  uint16_t* out_;
};

// Finishes and stores a warp's sums, sum[i][j] as in OutputTile, from row m and channel n (a
// multiple of 16) on; they are overwritten. channels_of(i, g): scale and bias of the lane's two
// channels of fragments i. The whole warp calls it.
//
// In three passes over the fragments: the code of the activations, which is unrolled for each of
// them, is then one stretch that is jumped over where there is none, and nothing of the stores is
// held in registers while it runs. The other order spilled.
template <typename T, int kTilesN, int kTilesM, typename ChannelsOf>
__device__ __forceinline__ void store_output(const Int8LinearParams& p, int64_t m, int64_t n,
                                             float (&sum)[kTilesN][kTilesM][4],
                                             ChannelsOf channels_of) {
  const int lane = read_lane();
#pragma unroll
  for (int i = 0; i < kTilesN; ++i) {
    const ChannelPair channels = channels_of(i, lane / 4);
#pragma unroll
    for (int j = 0; j < kTilesM; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        sum[i][j][c] = fmaf(sum[i][j][c], channels.scale[c / 2], channels.bias[c / 2]);
      }
    }
  }
  if (p.activation != Activation::kNone) {
#pragma unroll
    for (int i = 0; i < kTilesN; ++i) activate(sum[i], p.activation, lane);
  }
  const OutputTile<T> output(p, m, n, lane);
#pragma unroll
  for (int i = 0; i < kTilesN; ++i) {
#pragma unroll
    for (int j = 0; j < kTilesM; ++j) {
      if (m + 8 * j < p.m) output.store(i, j, sum[i][j]);
    }
  }
}

}  // namespace flashint8::cuda
