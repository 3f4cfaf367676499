// int8_linear for many rows of x, on CPUs with dot products of bytes: fp16, and up to kLanes rows
// of bf16, whose pairs are faster where more rows share the conversion of the weight. The weight
// goes into the products as it lies. A panel is kLanes rows of x, one a lane, in digits as
// int8_linear_digits.h makes them: a product takes four columns of every row, of one digit, times
// the same four of one channel.
//
// Here the digits are the instruction's unsigned side: each is stored plus 128, and 128 times the
// sum of the channel's weights is taken away at the end. Every sum is exact in int32.
//
// A panel with a row that has no digits goes to the products of int8_linear_gemm.h.
#pragma once

#include "int8_linear_digits.h"
#include "int8_linear_gemm.h"

namespace flashint8::cpu {
namespace {

#ifdef FLASHINT8_HAS_INT8_DOT

constexpr int64_t kPanelChannels = 8;  // at a time: the sums of their digits fill the registers
constexpr int64_t kStepBytes = 4;      // columns of a product
constexpr int64_t kMostPanelColumns = int64_t{1} << 16;  // 255 * 127 * k stays within int32
// A panel begins with kLanes floats, the first of which says whether there are digits, and a unit
// for each lane. Then come kIntBytes of each digit for every step of k.
constexpr int64_t kPanelHeader = 2 * kLanes;

template <class T>
bool in_digit_panels(const Int8LinearParams& p, int64_t m_count) {
  if (sizeof(T) != 2 || p.k > kMostPanelColumns) return false;
  return !std::is_same_v<T, BF16> || m_count <= kLanes;
}

// In floats.
template <class Dot, class T>
int64_t digit_panel_size(int64_t k) {
  const int64_t digits = round_up(k, kIntBytes) / kStepBytes * kDigits<T> * (kIntBytes / 4);
  return kPanelHeader + larger(digits, packed_cells<Dot>(k) * kLanes);
}

template <class T>
bool pack_panel_digits(const Int8LinearParams& p, int64_t m_begin, int64_t m_count, float* packed) {
  constexpr int kNumDigits = kDigits<T>;
  float* units = packed + kLanes;
  float* to = packed + kPanelHeader;
  store(units, zero());
  float inverse[kLanes];
  const T* rows[kLanes];
  for (int64_t i = 0; i < m_count; ++i) {
    rows[i] = static_cast<const T*>(p.x) + x_row_offset(p.x_rows, m_begin + i);
    if (!find_unit(rows[i], p.k, units + i, inverse + i)) return false;
  }
  // kIntBytes columns of every row: digits of a row side by side, then turned.
  alignas(kIntBytes) int8_t bytes[kNumDigits][kLanes][kIntBytes] = {};
  for (int64_t k = 0; k < p.k; k += kIntBytes) {
    for (int64_t i = 0; i < m_count; ++i) {
      for (int64_t j = 0; j < kIntBytes; j += kLanes) {
        const int64_t valid = larger(0, smaller(kLanes, p.k - k - j));
        const T* x = rows[i] + (valid > 0 ? k + j : 0);
        store_digits(x, valid, inverse[i], bytes[0][i] + j, sizeof(bytes[0]));
      }
    }
    for (int d = 0; d < kNumDigits; ++d) {
      Vec cells[kLanes];
      for (int i = 0; i < kLanes; ++i) cells[i] = as_cells(plus_128(load_bytes(bytes[d][i])));
      transpose(cells);
      for (int i = 0; i < kLanes; ++i) store(to + (i * kNumDigits + d) * kLanes, cells[i]);
    }
    to += kLanes * kNumDigits * kLanes;
  }
  return true;
}

// kPanelChannels channels, whose weights begin at w, to sums[channel][lane of the panel],
// kPanelRows floats apart. Meanwhile the weights `ahead` bytes further on are asked for.
template <int kNumDigits>
void multiply_digit_panel(const int8_t* const* w, int64_t k_count, int64_t ahead,
                          const float* digits, Vec unit, float* sums) {
  IntVec sum[kPanelChannels][kNumDigits];
  FLASHINT8_UNROLL
  for (int c = 0; c < kPanelChannels; ++c) {
    FLASHINT8_UNROLL
    for (int d = 0; d < kNumDigits; ++d) sum[c][d] = int_zero();
  }
  const auto add_step = [&](int64_t k, int64_t valid) {
    IntVec x[kNumDigits];
    FLASHINT8_UNROLL
    for (int d = 0; d < kNumDigits; ++d) {
      x[d] = load_bytes(digits + (k / kStepBytes * kNumDigits + d) * kLanes);
    }
    FLASHINT8_UNROLL
    for (int c = 0; c < kPanelChannels; ++c) {
      const IntVec cell = set1_bytes(w[c] + k, valid);
      FLASHINT8_UNROLL
      for (int d = 0; d < kNumDigits; ++d) sum[c][d] = byte_dot(sum[c][d], x[d], cell);
    }
  };
  int64_t k = 0;
  for (; k + kCacheLine <= k_count; k += kCacheLine) {
    FLASHINT8_UNROLL
    for (int c = 0; c < kPanelChannels; ++c) prefetch(w[c] + k, ahead);
    for (int64_t step = k; step < k + kCacheLine; step += kStepBytes) add_step(step, kStepBytes);
  }
  for (; k + kStepBytes <= k_count; k += kStepBytes) add_step(k, kStepBytes);
  if (k < k_count) add_step(k, k_count - k);
  for (int c = 0; c < kPanelChannels; ++c) {
    const IntVec offset = times_minus_128(set1_sum(sum_bytes(w[c], k_count)));
    FLASHINT8_UNROLL
    for (int d = 0; d < kNumDigits; ++d) sum[c][d] = int_add(sum[c][d], offset);
    store(sums + c * kPanelRows, mul(join_digits(sum[c]), unit));
  }
}

// All channels of `work` with one panel.
template <class T>
void linear_digit_panel(const Int8LinearParams& p, const LinearWork& work, float* sums) {
  const Vec unit = load(work.packed_x + kLanes);
  for (int64_t n = work.n_begin; n < work.n_end; n += kPanelChannels) {
    const int8_t* w[kPanelChannels];
    for (int64_t c = 0; c < kPanelChannels; ++c) {  // past the end: the last one again
      w[c] = p.weight + smaller(n + c, work.n_end - 1) * p.weight_stride;
    }
    multiply_digit_panel<kDigits<T>>(w, p.k, kPanelChannels * p.weight_stride,
                                     work.packed_x + kPanelHeader, unit,
                                     sums + (n - work.n_begin) * kPanelRows);
  }
  write_panel<T>(p, work.m_begin, work.m_count, work.n_begin, work.n_end, sums);
}

template <class Dot, class T>
int64_t packed_many_size(const Int8LinearParams& p, int64_t m_count) {
  if (!in_digit_panels<T>(p, m_count)) return packed_x_gemm_size<Dot>(p, m_count);
  return round_up(m_count, kLanes) / kLanes * digit_panel_size<Dot, T>(p.k);
}

template <class Dot, class T>
void pack_x_many(const Int8LinearParams& p, int64_t m_begin, int64_t m_count, float* packed,
                 int64_t begin, int64_t end) {
  if (!in_digit_panels<T>(p, m_count)) {
    return pack_x_gemm<Dot, T>(p, m_begin, m_count, packed, begin, end);
  }
  for (int64_t m = begin; m < end; m += kLanes) {
    float* panel = packed + m / kLanes * digit_panel_size<Dot, T>(p.k);
    const int64_t rows = smaller(kLanes, m_count - m);
    panel[0] = pack_panel_digits<T>(p, m_begin + m, rows, panel) ? 1.0f : 0.0f;
    if (panel[0] == 0.0f) {
      pack_x_gemm<Dot, T>(p, m_begin + m, rows, panel + kPanelHeader, 0, rows);
    }
  }
}

template <class Dot, class T>
void linear_many(const Int8LinearParams& p, const LinearWork& work, float* scratch) {
  if (!in_digit_panels<T>(p, work.m_count)) return linear_gemm<Dot, T>(p, work, scratch);
  LinearWork panel = work;
  for (int64_t m = 0; m < work.m_count; m += kLanes) {
    panel.m_begin = work.m_begin + m;
    panel.m_count = smaller(kLanes, work.m_count - m);
    panel.packed_x = work.packed_x + m / kLanes * digit_panel_size<Dot, T>(p.k);
    if (panel.packed_x[0] != 0.0f) {
      linear_digit_panel<T>(p, panel, scratch);
    } else {
      panel.packed_x += kPanelHeader;
      linear_gemm<Dot, T>(p, panel, scratch);
    }
  }
}

#else

template <class Dot, class T>
int64_t packed_many_size(const Int8LinearParams& p, int64_t m_count) {
  return packed_x_gemm_size<Dot>(p, m_count);
}

template <class Dot, class T>
void pack_x_many(const Int8LinearParams& p, int64_t m_begin, int64_t m_count, float* packed,
                 int64_t begin, int64_t end) {
  pack_x_gemm<Dot, T>(p, m_begin, m_count, packed, begin, end);
}

template <class Dot, class T>
void linear_many(const Int8LinearParams& p, const LinearWork& work, float* scratch) {
  linear_gemm<Dot, T>(p, work, scratch);
}

#endif

}  // namespace
}  // namespace flashint8::cpu
