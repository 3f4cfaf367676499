// What the gemvs have in common: the products of a warp's half unit, and how its sums are left for
// the block's other warps. Layout: gemv.cuh.
#pragma once

#include <cstdint>

#include "../device/dequant.cuh"
#include "../device/global_load.cuh"
#include "../device/mma.cuh"

namespace flashint8::cuda {

// 16 channels by 8 * kRowTiles rows, 64 k. weights: a lane's of channels g, g + 8; x: [rows][first,
// last 8 values of the lane's 16].
template <typename T, int kRowTiles>
__device__ __forceinline__ void multiply_half_unit(float (&sum)[kRowTiles][4],
                                                   const uint4 (&weights)[2],
                                                   const uint4 (&x)[kRowTiles][2]) {
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    uint32_t a[4];
    Int8To16<T>::dequantize_shortly(word_of(weights[0], s), a[0], a[2]);
    Int8To16<T>::dequantize_shortly(word_of(weights[1], s), a[1], a[3]);
#pragma unroll
    for (int j = 0; j < kRowTiles; ++j) {
      mma_m16n8k16<T>(sum[j], a, word_of(x[j][s / 2], 2 * (s % 2)),
                      word_of(x[j][s / 2], 2 * (s % 2) + 1));
    }
  }
}

// Of channels g, g + 8 and rows 2t, 2t + 1; `to` is the place of the first of each.
template <int kPitch>
__device__ __forceinline__ void leave_sums(float* to, const float (&sum)[4]) {
  to[0] = sum[0];
  to[kPitch] = sum[1];
  to[8] = sum[2];
  to[kPitch + 8] = sum[3];
}

}  // namespace flashint8::cuda
