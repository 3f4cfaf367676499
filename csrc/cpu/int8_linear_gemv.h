// int8_linear for few rows of x: bound by reading the weight, which is read once, as it lies, and
// becomes fp32 in registers. x is converted to fp32 once, by pack_x_gemv. Where the CPU has dot
// products of bytes, int8_linear_digits.h has other products for the same loop.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace flashint8::cpu {
namespace {

constexpr int64_t kGemvRows = kLanes == 16 ? 8 : 4;
constexpr int kGemvSums = 24;  // registers for sums at most, where there are 32
// Bytes of the weight asked for in advance. Memory is read fastest in one stream: several rows at a
// time, which would share the loads of x, reached three quarters of the rate.
constexpr int64_t kGemvAhead = 6 << 10;

// Independent sums along k, so that their latency is hidden where there are few of them.
constexpr int gemv_unroll(int sums) { return sums >= 8 ? 1 : (sums >= 4 ? 2 : 4); }

FLASHINT8_INLINE int64_t gemv_row_size(int64_t k) { return round_up(k, kLanes); }

template <class T>
void pack_x_gemv(const Int8LinearParams& p, int64_t m_begin, int64_t m_count, float* packed) {
  for (int64_t m = 0; m < m_count; ++m) {
    const T* x = static_cast<const T*>(p.x) + x_row_offset(p.x_rows, m_begin + m);
    float* to = packed + m * gemv_row_size(p.k);
    for (int64_t k = 0; k < p.k; k += kLanes) {
      const int64_t valid = smaller(kLanes, p.k - k);
      store(to + k, valid == kLanes ? load(x + k) : load_partial(x + k, valid));
    }
  }
}

// The products of kRows rows of fp32 x.
template <int kRows>
struct FloatRows {
  static constexpr int kNumRows = kRows;
  const float* x;
  int64_t ldx;

  // out[m]: a vector whose lanes add up to row m of x times a row of the weight.
  FLASHINT8_INLINE void multiply(const int8_t* w, int64_t columns, int64_t ahead, Vec* out) const {
    constexpr int kPerLine = static_cast<int>(kCacheLine / kLanes);
    constexpr int kUnroll = static_cast<int>(smaller(gemv_unroll(kRows), kPerLine));
    Vec sum[kUnroll][kRows];
    FLASHINT8_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      FLASHINT8_UNROLL
      for (int m = 0; m < kRows; ++m) sum[u][m] = zero();
    }
    int64_t k = 0;
    for (; k + kCacheLine <= columns; k += kCacheLine) {
      prefetch(w + k, ahead);
      for (int64_t j = k; j < k + kCacheLine; j += kUnroll * kLanes) {
        FLASHINT8_UNROLL
        for (int u = 0; u < kUnroll; ++u) {
          const Vec weight = load(w + j + u * kLanes);
          FLASHINT8_UNROLL
          for (int m = 0; m < kRows; ++m) {
            sum[u][m] = fma(weight, load(x + m * ldx + j + u * kLanes), sum[u][m]);
          }
        }
      }
    }
    for (; k < columns; k += kLanes) {
      const int64_t valid = smaller(kLanes, columns - k);
      const Vec weight = valid == kLanes ? load(w + k) : load_partial(w + k, valid);
      FLASHINT8_UNROLL
      for (int m = 0; m < kRows; ++m) sum[0][m] = fma(weight, load(x + m * ldx + k), sum[0][m]);
    }
    FLASHINT8_UNROLL
    for (int m = 0; m < kRows; ++m) {
      out[m] = sum[0][m];
      FLASHINT8_UNROLL
      for (int u = 1; u < kUnroll; ++u) out[m] = add(out[m], sum[u][m]);
    }
  }
};

// The rows of x in `rows` times every row of the weight in `work`. kLanes of their sums become one
// vector.
template <class T, class Rows>
void gemv_rows(const Int8LinearParams& p, const LinearWork& work, const Rows& rows) {
  constexpr int kRows = Rows::kNumRows;
  const T* bias = static_cast<const T*>(p.bias);
  const bool one_stream = p.weight_stride == p.k || p.k >= kGemvAhead;
  const int64_t ahead = one_stream ? kGemvAhead : round_up(kGemvAhead, larger(1, p.weight_stride));
  for (int64_t n = work.n_begin; n < work.n_end; n += kLanes) {
    const int64_t valid = smaller(kLanes, work.n_end - n);
    Vec sums[kRows][kLanes];
    for (int64_t c = 0; c < kLanes; ++c) {
      Vec out[kRows];
      if (c < valid) rows.multiply(p.weight + (n + c) * p.weight_stride, p.k, ahead, out);
      FLASHINT8_UNROLL
      for (int m = 0; m < kRows; ++m) sums[m][c] = c < valid ? out[m] : zero();
    }
    for (int m = 0; m < kRows; ++m) {
      Vec y = mul(sum_rows(sums[m]), load_partial(p.weight_scale + n, valid));
      if (bias) y = add(y, load_partial(bias + n, valid));
      store_partial(static_cast<T*>(p.out) + (work.m_begin + m) * p.n + n, y, valid);
    }
  }
}

// Calls fn with kRows rows as a constant; m_count is at most kMost.
template <int kMost, class Fn>
FLASHINT8_INLINE void with_rows(int64_t m_count, Fn fn) {
  if constexpr (kMost > 1) {
    if (m_count < kMost) return with_rows<kMost - 1>(m_count, fn);
  }
  fn(std::integral_constant<int, kMost>{});
}

template <class T>
void linear_gemv(const Int8LinearParams& p, const LinearWork& work, const float* packed) {
  with_rows<kGemvRows>(work.m_count, [&](auto rows) {
    gemv_rows<T>(p, work, FloatRows<rows()>{packed, gemv_row_size(p.k)});
  });
}

}  // namespace
}  // namespace flashint8::cpu
