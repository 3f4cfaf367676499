// int8_linear for one row of x, on CPUs with dot products of bytes: the weight goes into the
// products as it lies, and nothing is converted on the way from memory. With more rows the digits
// are more than L1 holds, and int8_linear_gemv.h is faster.
//
// The row becomes integers times a power of two: 24 bits of them for 16-bit x, 32 for fp32, counted
// from the row's largest magnitude. Their signed base-256 digits are bytes, and
//   x . w = unit * sum over i of 256^i (digit_i . w)
// with every digit's product exact in int32. The instruction takes unsigned bytes times signed
// ones: the unsigned ones are w + 128, and the sums start at -128 times the sum of the digits.
//
// The integers are off by at most 2^-24 (2^-32) of the row's largest magnitude. That is below what
// fp32 sums lose, and far below the output's own rounding, as long as the largest is not too far
// above the rest: rows where it is, rows that are not finite, and those too small to scale go to
// the products of int8_linear_gemv.h.
#pragma once

#include "int8_linear_gemv.h"

namespace flashint8::cpu {
namespace {

#ifdef FLASHINT8_HAS_INT8_DOT

template <class T>
constexpr int kDigits = sizeof(T) == 2 ? 3 : 4;
// How many powers of two the largest magnitude may lie above the (geometric) mean one.
template <class T>
constexpr float kDigitRange = 8.0f;
template <>
constexpr float kDigitRange<F16> = 10.0f;
template <>
constexpr float kDigitRange<BF16> = 12.0f;
constexpr int64_t kDigitsHeader = kLanes;  // floats: whether there are digits, the unit
constexpr int64_t kMostDigitColumns = int64_t{1} << 20;  // a lane's sum stays within int32

// After the header: the sums' start, kLanes int32 for each digit, then the digits.
FLASHINT8_INLINE int64_t digit_row_bytes(int64_t k) { return round_up(k, kIntBytes); }

template <class T>
int64_t packed_few_size(const Int8LinearParams& p, int64_t m_count) {
  const int64_t digits = kDigits<T> * (kLanes + digit_row_bytes(p.k) / 4);
  return kDigitsHeader + larger(digits, m_count * gemv_row_size(p.k));
}

// 2^n for n in [-126, 127].
FLASHINT8_INLINE float power_of_two(int n) {
  const uint32_t bits = static_cast<uint32_t>(n + 127) << 23;
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

// Finds the unit of a row: false where the row cannot be written in digits.
template <class T>
bool find_unit(const T* x, int64_t k_count, float* unit, float* inverse) {
  Vec largest = zero(), finite = zero(), exponents = zero(), count = zero();
  for (int64_t k = 0; k < k_count; k += kLanes) {
    const Vec v = load_partial(x + k, smaller(kLanes, k_count - k));
    largest = max(abs(v), largest);
    finite = fma(v, zero(), finite);  // infinity * 0 is NaN
    add_exponents(v, &exponents, &count);
  }
  if (!(sum_lanes(finite) == 0.0f)) return false;
  float most = max_lanes(largest);
  constexpr float kSmallest = 0x1p-60f;
  if (most == 0.0f) most = 1.0f;
  if (most < kSmallest) return false;
  most *= 1.004f;  // the largest of four signed digits is 127 * 0x01010101, not quite 2^31
  uint32_t bits;
  memcpy(&bits, &most, sizeof(bits));
  const int exponent = static_cast<int>(bits >> 23) - 127 - (8 * kDigits<T> - 2);
  const float above = static_cast<float>(exponent + 8 * kDigits<T> - 2) * sum_lanes(count);
  if (above - sum_lanes(exponents) > kDigitRange<T> * sum_lanes(count)) return false;
  *unit = power_of_two(exponent);
  *inverse = power_of_two(-exponent);
  return true;
}

// The digits of `valid` values, up to kLanes; those of one place after those of another, `apart`
// bytes on. Past the last they are 0.
template <class T>
FLASHINT8_INLINE void store_digits(const T* x, int64_t valid, float inverse, int8_t* to,
                                   int64_t apart) {
  IntVec rest = to_int(mul(load_partial(x, valid), set1(inverse)));
  FLASHINT8_UNROLL
  for (int d = 0; d < kDigits<T>; ++d) rest = store_digit(to + d * apart, rest);
}

// The number whose digits these are.
template <int kNumDigits>
FLASHINT8_INLINE Vec join_digits(const IntVec (&digits)[kNumDigits]) {
  Vec total = zero();
  FLASHINT8_UNROLL
  for (int d = kNumDigits - 1; d >= 0; --d) {
    total = fma(total, set1(256.0f), to_float(digits[d]));
  }
  return total;
}

// Lanes that add up to the sum of the bytes.
FLASHINT8_INLINE IntVec sum_bytes(const int8_t* p, int64_t count) {
  IntVec sum = int_zero();
  int64_t i = 0;
  for (; i + kIntBytes <= count; i += kIntBytes) {
    sum = byte_dot(sum, one_bytes(), load_bytes(p + i));
  }
  if (i < count) sum = byte_dot(sum, one_bytes(), load_bytes_partial(p + i, count - i));
  return sum;
}

template <class T>
bool pack_digits(const Int8LinearParams& p, const T* x, float* packed) {
  const int64_t row_bytes = digit_row_bytes(p.k);
  float* starts = packed + kDigitsHeader;
  int8_t* digits = reinterpret_cast<int8_t*>(starts + kDigits<T> * kLanes);
  float inverse;
  if (!find_unit(x, p.k, packed + 1, &inverse)) return false;
  for (int64_t k = 0; k < row_bytes; k += kLanes) {
    const int64_t valid = larger(0, smaller(kLanes, p.k - k));
    store_digits(x + k, valid, inverse, digits + k, row_bytes);
  }
  for (int d = 0; d < kDigits<T>; ++d) {
    store_bytes(starts + d * kLanes, times_minus_128(sum_bytes(digits + d * row_bytes, row_bytes)));
  }
  return true;
}

// The products of one row of x in digits; see FloatRows.
template <int kNumDigits>
struct DigitRow {
  static constexpr int kNumRows = 1;
  static constexpr int kChannels = 1;
  // With three digits the hardware's own prefetching does the rest of it (docs/performance.md).
  static constexpr int64_t kAhead = kNumDigits <= 3 ? 2 << 10 : 8 << 10;
  float unit;
  const float* starts;
  const int8_t* digits;
  int64_t row_bytes;

  FLASHINT8_INLINE void multiply(const int8_t* const* weight, int64_t columns, int64_t ahead,
                                 Vec (*out)[kNumRows]) const {
    constexpr int kUnroll = gemv_unroll(kNumDigits);
    const int8_t* w = weight[0];
    IntVec sum[kUnroll][kNumDigits];
    FLASHINT8_UNROLL
    for (int d = 0; d < kNumDigits; ++d) {
      sum[0][d] = load_bytes(starts + d * kLanes);
      FLASHINT8_UNROLL
      for (int u = 1; u < kUnroll; ++u) sum[u][d] = int_zero();
    }
    int64_t k = 0;
    for (; k + kUnroll * kIntBytes <= columns; k += kUnroll * kIntBytes) {
      FLASHINT8_UNROLL
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t at = k + u * kIntBytes;
        prefetch(w + at, ahead);
        add_products(load_bytes(w + at), at, sum[u]);
      }
    }
    for (; k + kIntBytes <= columns; k += kIntBytes) add_products(load_bytes(w + k), k, sum[0]);
    if (k < columns) add_products(load_bytes_partial(w + k, columns - k), k, sum[0]);
    FLASHINT8_UNROLL
    for (int d = 0; d < kNumDigits; ++d) {
      FLASHINT8_UNROLL
      for (int u = 1; u < kUnroll; ++u) sum[0][d] = int_add(sum[0][d], sum[u][d]);
    }
    out[0][0] = mul(join_digits(sum[0]), set1(unit));
  }

 private:
  FLASHINT8_INLINE void add_products(IntVec weight, int64_t k, IntVec* sum) const {
    FLASHINT8_UNROLL
    for (int d = 0; d < kNumDigits; ++d) {
      sum[d] = byte_dot(sum[d], plus_128(weight), load_bytes(digits + d * row_bytes + k));
    }
  }
};

template <class T>
void pack_x_few(const Int8LinearParams& p, int64_t m_begin, int64_t m_count, float* packed) {
  const T* x = static_cast<const T*>(p.x) + x_row_offset(p.x_rows, m_begin);
  const bool fits = m_count == 1 && p.k <= kMostDigitColumns;
  packed[0] = fits && pack_digits(p, x, packed) ? 1.0f : 0.0f;
  if (packed[0] == 0.0f) pack_x_gemv<T>(p, m_begin, m_count, packed + kDigitsHeader);
}

template <class T>
void linear_few(const Int8LinearParams& p, const LinearWork& work) {
  const float* starts = work.packed_x + kDigitsHeader;
  if (work.packed_x[0] == 0.0f) return linear_gemv<T>(p, work, starts);
  const float* digits = starts + kDigits<T> * kLanes;
  gemv_rows<T>(p, work,
               DigitRow<kDigits<T>>{work.packed_x[1], starts,
                                    reinterpret_cast<const int8_t*>(digits), digit_row_bytes(p.k)});
}

#else

template <class T>
int64_t packed_few_size(const Int8LinearParams& p, int64_t m_count) {
  return m_count * gemv_row_size(p.k);
}

template <class T>
void pack_x_few(const Int8LinearParams& p, int64_t m_begin, int64_t m_count, float* packed) {
  pack_x_gemv<T>(p, m_begin, m_count, packed);
}

template <class T>
void linear_few(const Int8LinearParams& p, const LinearWork& work) {
  linear_gemv<T>(p, work, work.packed_x);
}

#endif

}  // namespace
}  // namespace flashint8::cpu
