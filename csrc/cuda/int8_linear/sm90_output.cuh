// From the Hopper gemm's sums to the output: scale, bias, activation and one rounding in registers,
// then through shared memory, so that global memory is written 16 bytes a lane.
#pragma once

#include "../device/convert.cuh"
#include "../device/linear_ptx.cuh"
#include "epilogue.cuh"
#include "flashint8/int8_linear.h"
#include "variants.h"

namespace flashint8::cuda {

// A warpgroup's part of a tile: 64 channels x kBlockM rows. What comes of it, 64 columns (gated:
// 32), is staged as rows of 128 bytes, whose 16-byte pieces are exchanged (piece ^ (row & 7)), so
// that eight rows of one piece, as stmatrix writes, and the pieces of one row, as they are read,
// lie in different banks.
template <typename T, int kBlockM>
class Sm90Output {
 public:
  static constexpr int kChannels = kSm90BlockN / 2;
  static constexpr int kRowBytes = 2 * kChannels;

  __device__ __forceinline__ Sm90Output(const Int8LinearParams& p, uint32_t staged, int row,
                                        int channel, int group, int warp, int lane)
      : p_(p),
        staged_(staged + group * kBlockM * kRowBytes),
        row_(row),
        channel_(channel + group * kChannels),
        warp_(warp),
        lane_(lane),
        gated_(p.activation == Activation::kSiluMul) {}

  // The sums of kCount fragments (64 channels x 8 rows, layout in wgmma.cuh), j the first of them,
  // to shared memory, kAtOnce at a time.
  template <int kCount, int kAtOnce>
  __device__ __forceinline__ void stage(int j, const float* sum,
                                        const ChannelPair& channels) const {
    // Code for no activation that is not interrupted by theirs is fetched faster.
    if (p_.activation == Activation::kNone) {
#pragma unroll
      for (int f = 0; f < kCount; f += kAtOnce) pass<false, kAtOnce>(j + f, &sum[4 * f], channels);
    } else {
#pragma unroll
      for (int f = 0; f < kCount; f += kAtOnce) pass<true, kAtOnce>(j + f, &sum[4 * f], channels);
    }
  }

  // Rows [begin, end) of what is staged, once the whole warpgroup has done so.
  __device__ __forceinline__ void write(int begin, int end) const {
    const int pieces = kRowBytes / 16 >> gated_, thread = warp_ * 32 + lane_;
    const int piece = thread & pieces - 1, row_step = 128 >> 3 - gated_;
    const int64_t columns = out_columns(p_);
    const int column = (gated_ ? channel_ / 2 : channel_) + 8 * piece;
    const int rows = min(end, static_cast<int>(min(p_.m - row_, int64_t{kBlockM})));
    const bool whole = columns % 8 == 0 && reinterpret_cast<uintptr_t>(p_.out) % 16 == 0;
    const int count = static_cast<int>(min(max(columns - column, int64_t{0}), int64_t{8}));
    if (count == 0) return;
    uint16_t* out = static_cast<uint16_t*>(p_.out) + int64_t{row_} * columns + column;
    int row = begin + (thread >> 3 - gated_);
    if (whole) {
#pragma unroll 4
      for (; row < rows; row += row_step) {
        *reinterpret_cast<uint4*>(out + row * columns) = load_shared_16(address(row, piece));
      }
    } else {
#pragma unroll 1
      for (; row < rows; row += row_step) {
        const uint4 v = load_shared_16(address(row, piece));
        const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          if (i < count) {
            out[row * columns + i] = static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)));
          }
        }
      }
    }
  }

 private:
  // In passes over the fragments, as store_output.
  template <bool kActivated, int kCount>
  __device__ __forceinline__ void pass(int j, const float* sum, const ChannelPair& channels) const {
    static_assert(kCount % 2 == 0);
    float c[kCount][4];
#pragma unroll
    for (int f = 0; f < kCount; ++f) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        c[f][i] = fmaf(sum[4 * f + i], channels.scale[i / 2], channels.bias[i / 2]);
      }
    }
    if constexpr (kActivated) activate(c, p_.activation, lane_);
    const int matrix = lane_ / 8, row = lane_ % 8;
#pragma unroll
    for (int f = 0; f < kCount; f += 2) {
      const uint32_t values[4] = {pack2<T>(c[f][0], c[f][1]), pack2<T>(c[f][2], c[f][3]),
                                  pack2<T>(c[f + 1][0], c[f + 1][1]),
                                  pack2<T>(c[f + 1][2], c[f + 1][3])};
      if (kActivated && gated_) {
        stmatrix_x2_trans(address(8 * (j + f + matrix % 2) + row, warp_), values[0], values[2]);
      } else {
        stmatrix_x4_trans(address(8 * (j + f + matrix / 2) + row, 2 * warp_ + matrix % 2), values);
      }
    }
  }

  __device__ __forceinline__ uint32_t address(int row, int piece) const {
    return staged_ + row * kRowBytes + (piece ^ (row & 7)) * 16;
  }

  const Int8LinearParams& p_;
  uint32_t staged_;
  int row_, channel_;
  int warp_, lane_;
  bool gated_;
};

}  // namespace flashint8::cuda
