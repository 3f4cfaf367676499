// From the Hopper gemm's sums to the output: scale, bias and one rounding in registers, then through
// shared memory, so that global memory is written 16 bytes a lane.
#pragma once

#include "../device/convert.cuh"
#include "../device/linear_ptx.cuh"
#include "epilogue.cuh"
#include "flashint8/int8_linear.h"
#include "variants.h"

namespace flashint8::cuda {

// A warpgroup's part of a tile: 64 channels x kBlockM rows. It is staged as rows of 128 bytes,
// whose 16-byte pieces are exchanged (piece ^ (row & 7)), so that eight rows of one piece, as
// stmatrix writes, and the pieces of one row, as they are read, lie in different banks.
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
        lane_(lane) {}

  // Fragments j and j + 1, rows 8j .. 8j + 15: c[0..3] and c[4..7] are a lane's sums of them, in
  // the layout of wgmma.cuh.
  __device__ __forceinline__ void stage(int j, const float* c, const ChannelPair& channels) const {
    uint32_t values[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[i] = pack2<T>(fmaf(c[2 * i], channels.scale[i % 2], channels.bias[i % 2]),
                           fmaf(c[2 * i + 1], channels.scale[i % 2], channels.bias[i % 2]));
    }
    const int matrix = lane_ / 8, row = 8 * (j + matrix / 2) + lane_ % 8;
    stmatrix_x4_trans(address(row, 2 * warp_ + matrix % 2), values);
  }

  // Rows [begin, end) of what is staged, once the whole warpgroup has done so.
  __device__ __forceinline__ void write(int begin, int end) const {
    constexpr int kPieces = kRowBytes / 16, kRowStep = 32 * 4 / kPieces;
    const int thread = warp_ * 32 + lane_, piece = thread % kPieces;
    const int64_t channel = channel_ + 8 * piece;
    const int rows = min(end, static_cast<int>(min(p_.m - row_, int64_t{kBlockM})));
    const bool whole = p_.n % 8 == 0 && reinterpret_cast<uintptr_t>(p_.out) % 16 == 0;
    const int count = static_cast<int>(min(max(p_.n - channel, int64_t{0}), int64_t{8}));
    if (count == 0) return;
#pragma unroll 1  // what is found ahead for several rows costs registers that the sums need
    for (int row = begin + thread / kPieces; row < rows; row += kRowStep) {
      const uint4 v = load_shared_16(address(row, piece));
      uint16_t* out = static_cast<uint16_t*>(p_.out) + (row_ + row) * p_.n + channel;
      if (whole) {
        *reinterpret_cast<uint4*>(out) = v;
      } else {
        const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          if (i < count) out[i] = static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)));
        }
      }
    }
  }

 private:
  __device__ __forceinline__ uint32_t address(int row, int piece) const {
    return staged_ + row * kRowBytes + (piece ^ (row & 7)) * 16;
  }

  const Int8LinearParams& p_;
  uint32_t staged_;
  int64_t row_;
  int64_t channel_;
  int warp_, lane_;
};

}  // namespace flashint8::cuda
