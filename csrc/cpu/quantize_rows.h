// quantize_per_channel, a row at a time.
#pragma once

#include "flashint8/int8_linear.h"
#include "simd.h"

namespace flashint8::cpu {
namespace {

// Elements [k, k + n) of a row, n <= kLanes, as fp32.
template <class T>
FLASHINT8_INLINE Vec load_strided(const T* row, int64_t stride, int64_t n) {
  if (stride == 1) return n == kLanes ? load(row) : load_partial(row, n);
  T buffer[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) buffer[i] = row[i * stride];
  return load(buffer);
}

template <class T>
int64_t quantize_rows(const QuantizeParams& p, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    const T* row = static_cast<const T*>(p.weight) + n * p.row_stride;
    Vec largest = zero();
    Vec bad = zero();  // x * 0 is NaN for what is not finite, and NaN stays in a sum
    for (int64_t k = 0; k < p.k; k += kLanes) {
      const Vec x = load_strided(row + k * p.col_stride, p.col_stride, smaller(kLanes, p.k - k));
      largest = max(abs(x), largest);
      bad = fma(x, zero(), bad);
    }
    if (sum_lanes(bad) != 0.0f) return n;
    const float scale = max_lanes(largest) / 127.0f;
    p.scale[n] = scale;
    int8_t* out = p.quantized + n * p.k;
    for (int64_t k = 0; k < p.k; k += kLanes) {
      const int64_t valid = smaller(kLanes, p.k - k);
      const Vec x = load_strided(row + k * p.col_stride, p.col_stride, valid);
      const Vec y = scale > 0.0f ? round_even(div(x, set1(scale))) : zero();
      store_partial(out + k, min(set1(127.0f), max(set1(-127.0f), y)), valid);
    }
  }
  return -1;
}

}  // namespace
}  // namespace flashint8::cpu
