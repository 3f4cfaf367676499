// int8_linear for few rows of x: bound by reading the weight, which is read once, as it lies, and
// becomes fp32 in registers. x is converted to fp32 once, by pack_x.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace flashint8::cpu {
namespace {

constexpr int64_t kGemvRows = kLanes == 16 ? 8 : 4;
constexpr int kGemvSums = kLanes == 16 ? 24 : 10;  // registers for sums
// Rows of the weight at a time: they share the loads of x.
template <int kRows>
constexpr int gemv_channels() {
  return static_cast<int>(smaller(4, kGemvSums / kRows));
}

FLASHINT8_INLINE int64_t gemv_row_size(int64_t k) { return round_up(k, kLanes); }

template <class T>
void pack_x_gemv(const Int8LinearParams& p, int64_t m_begin, float* packed, int64_t begin,
                 int64_t end) {
  for (int64_t m = begin; m < end; ++m) {
    const T* x = static_cast<const T*>(p.x) + x_row_offset(p.x_rows, m_begin + m);
    float* to = packed + m * gemv_row_size(p.k);
    for (int64_t k = 0; k < p.k; k += kLanes) {
      const int64_t valid = smaller(kLanes, p.k - k);
      store(to + k, valid == kLanes ? load(x + k) : load_partial(x + k, valid));
    }
  }
}

// out[m][n..] for kRows rows of x and kChannels rows of the weight.
template <int kRows, int kChannels, class T>
void gemv_tile(const Int8LinearParams& p, int64_t m_begin, int64_t n, const float* x) {
  const int64_t ldx = gemv_row_size(p.k);
  const int8_t* w = p.weight + n * p.weight_stride;
  Vec sum[kChannels][kRows];
  FLASHINT8_UNROLL
  for (int c = 0; c < kChannels; ++c) {
    FLASHINT8_UNROLL
    for (int m = 0; m < kRows; ++m) sum[c][m] = zero();
  }
  int64_t k = 0;
  const int64_t ahead = kChannels * p.weight_stride;  // the rows that come next
  for (; k + kCacheLine <= p.k; k += kCacheLine) {
    FLASHINT8_UNROLL
    for (int c = 0; c < kChannels; ++c) prefetch(w + c * p.weight_stride + k, ahead);
    for (int64_t j = k; j < k + kCacheLine; j += kLanes) {
      Vec weight[kChannels];
      FLASHINT8_UNROLL
      for (int c = 0; c < kChannels; ++c) weight[c] = load(w + c * p.weight_stride + j);
      FLASHINT8_UNROLL
      for (int m = 0; m < kRows; ++m) {
        const Vec activation = load(x + m * ldx + j);
        FLASHINT8_UNROLL
        for (int c = 0; c < kChannels; ++c) sum[c][m] = fma(weight[c], activation, sum[c][m]);
      }
    }
  }
  for (; k + kLanes <= p.k; k += kLanes) {
    for (int c = 0; c < kChannels; ++c) {
      const Vec weight = load(w + c * p.weight_stride + k);
      for (int m = 0; m < kRows; ++m) sum[c][m] = fma(weight, load(x + m * ldx + k), sum[c][m]);
    }
  }
  if (k < p.k) {
    for (int c = 0; c < kChannels; ++c) {
      const Vec weight = load_partial(w + c * p.weight_stride + k, p.k - k);
      for (int m = 0; m < kRows; ++m) sum[c][m] = fma(weight, load(x + m * ldx + k), sum[c][m]);
    }
  }
  const T* bias = static_cast<const T*>(p.bias);
  for (int m = 0; m < kRows; ++m) {
    float total[kLanes] = {};
    for (int c = 0; c < kChannels; ++c) total[c] = sum_lanes(sum[c][m]);
    Vec y = mul(load(total), load_partial(p.weight_scale + n, kChannels));
    if (bias) y = add(y, load_partial(bias + n, kChannels));
    store_partial(static_cast<T*>(p.out) + (m_begin + m) * p.n + n, y, kChannels);
  }
}

template <int kRows, class T>
void gemv_rows(const Int8LinearParams& p, const LinearWork& work) {
  constexpr int kChannels = gemv_channels<kRows>();
  int64_t n = work.n_begin;
  for (; n + kChannels <= work.n_end; n += kChannels) {
    gemv_tile<kRows, kChannels, T>(p, work.m_begin, n, work.packed_x);
  }
  for (; n < work.n_end; ++n) gemv_tile<kRows, 1, T>(p, work.m_begin, n, work.packed_x);
}

template <class T>
void linear_gemv(const Int8LinearParams& p, const LinearWork& work) {
  switch (work.m_count) {
    case 1: return gemv_rows<1, T>(p, work);
    case 2: return gemv_rows<2, T>(p, work);
    case 3: return gemv_rows<3, T>(p, work);
    case 4: return gemv_rows<4, T>(p, work);
    default: break;
  }
  if constexpr (kGemvRows == 8) {
    switch (work.m_count) {
      case 5: return gemv_rows<5, T>(p, work);
      case 6: return gemv_rows<6, T>(p, work);
      case 7: return gemv_rows<7, T>(p, work);
      default: return gemv_rows<8, T>(p, work);
    }
  }
}

}  // namespace
}  // namespace flashint8::cpu
