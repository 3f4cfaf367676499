// int8_linear for few rows of x: bound by reading the weight, which is read once, as it lies, and
// becomes fp32 in registers. x is converted to fp32 once, by pack_x_gemv. Where the CPU has dot
// products of bytes, int8_linear_digits.h has other products for the same loop.
#pragma once

#include "kernels.h"
#include "vector_math.h"

namespace flashint8::cpu {
namespace {

constexpr int64_t kGemvRows = kLanes == 16 ? 8 : 4;
constexpr int kGemvSums = kLanes == 16 ? 24 : 10;  // registers for sums at most

// Independent sums along k, so that their latency is hidden where there are few of them.
constexpr int gemv_unroll(int sums) { return sums >= 8 ? 1 : (sums >= 4 ? 2 : 4); }

// Rows of the weight at a time, for `rows` rows of x. Memory is read fastest in one stream; with
// more than one row, sharing what is loaded of them is worth more.
constexpr int gemv_channels(int rows) {
  if (rows == 1) return 1;
  return 4 * rows <= kGemvSums ? 4 : (2 * rows <= kGemvSums ? 2 : 1);
}

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
  static constexpr int kChannels = gemv_channels(kRows);
  static constexpr int64_t kAhead = 16 << 10;  // bytes of the weight asked for in advance
  const float* x;
  int64_t ldx;

  // out[c][m]: a vector whose lanes add up to row m of x times the weight's row at w[c].
  FLASHINT8_INLINE void multiply(const int8_t* const* w, int64_t columns, int64_t ahead,
                                 Vec (*out)[kRows]) const {
    constexpr int kPerLine = static_cast<int>(kCacheLine / kLanes);
    constexpr int kUnroll = static_cast<int>(smaller(gemv_unroll(kRows * kChannels), kPerLine));
    Vec sum[kUnroll][kChannels][kRows];
    FLASHINT8_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      FLASHINT8_UNROLL
      for (int c = 0; c < kChannels; ++c) {
        FLASHINT8_UNROLL
        for (int m = 0; m < kRows; ++m) sum[u][c][m] = zero();
      }
    }
    int64_t k = 0;
    for (; k + kCacheLine <= columns; k += kCacheLine) {
      FLASHINT8_UNROLL
      for (int c = 0; c < kChannels; ++c) prefetch(w[c] + k, ahead);
      for (int64_t j = k; j < k + kCacheLine; j += kUnroll * kLanes) {
        FLASHINT8_UNROLL
        for (int u = 0; u < kUnroll; ++u) add_products(w, j + u * kLanes, kLanes, sum[u]);
      }
    }
    for (; k < columns; k += kLanes) add_products(w, k, smaller(kLanes, columns - k), sum[0]);
    FLASHINT8_UNROLL
    for (int c = 0; c < kChannels; ++c) {
      FLASHINT8_UNROLL
      for (int m = 0; m < kRows; ++m) {
        out[c][m] = sum[0][c][m];
        FLASHINT8_UNROLL
        for (int u = 1; u < kUnroll; ++u) out[c][m] = add(out[c][m], sum[u][c][m]);
      }
    }
  }

 private:
  FLASHINT8_INLINE void add_products(const int8_t* const* w, int64_t k, int64_t valid,
                                     Vec (*sum)[kRows]) const {
    Vec weight[kChannels];
    FLASHINT8_UNROLL
    for (int c = 0; c < kChannels; ++c) {
      weight[c] = valid == kLanes ? load(w[c] + k) : load_partial(w[c] + k, valid);
    }
    FLASHINT8_UNROLL
    for (int m = 0; m < kRows; ++m) {
      const Vec activation = load(x + m * ldx + k);
      FLASHINT8_UNROLL
      for (int c = 0; c < kChannels; ++c) sum[c][m] = fma(weight[c], activation, sum[c][m]);
    }
  }
};

// Writes the activation of `valid` channels, the first of them n, to a row of the output.
template <class T>
FLASHINT8_INLINE void store_activated(const Int8LinearParams& p, int64_t row, int64_t n, Vec y,
                                      int64_t valid) {
  T* out = static_cast<T*>(p.out);
  if (p.activation != Activation::kSiluMul) {
    if (p.activation != Activation::kNone) y = activate(y, p.activation);
    store_partial(out + row * p.n + n, y, valid);
    return;
  }
  float pairs[kLanes], gate[kLanes] = {}, up[kLanes] = {};
  store(pairs, y);
  for (int64_t i = 0; i < valid / 2; ++i) {
    gate[i] = pairs[2 * i];
    up[i] = pairs[2 * i + 1];
  }
  y = mul(activate(load(gate), p.activation), load(up));
  store_partial(out + row * (p.n / 2) + n / 2, y, valid / 2);
}

// The rows of x in `rows` times every row of the weight in `work`. kLanes of their sums become one
// vector; where fewer are left, the last row stands in for those that are missing.
template <class T, class Rows>
void gemv_rows(const Int8LinearParams& p, const LinearWork& work, const Rows& rows) {
  constexpr int kRows = Rows::kNumRows, kChannels = Rows::kChannels;
  const T* bias = static_cast<const T*>(p.bias);
  const int64_t group = larger(1, kChannels * p.weight_stride);
  const bool one_stream = kChannels == 1 && (p.weight_stride == p.k || p.k >= Rows::kAhead);
  const int64_t ahead = one_stream ? Rows::kAhead : round_up(Rows::kAhead, group);
  for (int64_t n = work.n_begin; n < work.n_end; n += kLanes) {
    const int64_t valid = smaller(kLanes, work.n_end - n);
    Vec sums[kRows][kLanes];
    for (int64_t c = 0; c < kLanes; c += kChannels) {
      const int8_t* w[kChannels];
      FLASHINT8_UNROLL
      for (int i = 0; i < kChannels; ++i) {
        w[i] = p.weight + (n + smaller(c + i, valid - 1)) * p.weight_stride;
      }
      Vec out[kChannels][kRows];
      rows.multiply(w, p.k, ahead, out);
      FLASHINT8_UNROLL
      for (int i = 0; i < kChannels; ++i) {
        FLASHINT8_UNROLL
        for (int m = 0; m < kRows; ++m) sums[m][c + i] = out[i][m];
      }
    }
    for (int m = 0; m < kRows; ++m) {
      Vec y = mul(sum_rows(sums[m]), load_partial(p.weight_scale + n, valid));
      if (bias) y = add(y, load_partial(bias + n, valid));
      store_activated<T>(p, work.m_begin + m, n, y, valid);
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
