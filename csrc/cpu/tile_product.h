// The register-blocked product that attention and int8_linear share.
//
//   c[n][lanes] (+)= sum over k of a(n, k) * b[k][lanes]
//
// b holds kVectors vectors a step: its lanes are the queries of attention, or the rows of x. a is
// read one 32-bit cell at a time and broadcast, so keys, values and weights keep the order they
// have in memory: only the (smaller, reused) lane operand is ever transposed. With the queries in
// the lanes, the softmax has no horizontal step at all.
//
// A cell is a float, or a pair of bf16 that are neighbours along k (Bf16Dot).
#pragma once

#include "simd.h"

namespace flashint8::cpu {
namespace {

// How a cell of a times a vector of b is added.
struct FloatDot {
  static constexpr int kPerCell = 1;
  static FLASHINT8_INLINE Vec load_int8(const int8_t* p) { return load(p); }
  static FLASHINT8_INLINE Vec load_int8_partial(const int8_t* p, int64_t n) {
    return load_partial(p, n);
  }
  static FLASHINT8_INLINE Vec add_product(Vec sum, Vec a, Vec b) { return fma(a, b, sum); }
};

#ifdef FLASHINT8_HAS_BF16_DOT
struct Bf16Dot {
  static constexpr int kPerCell = 2;
  static FLASHINT8_INLINE Vec load_int8(const int8_t* p) { return load_int8_pairs(p); }
  static FLASHINT8_INLINE Vec load_int8_partial(const int8_t* p, int64_t n) {
    return load_int8_pairs_partial(p, n);
  }
  static FLASHINT8_INLINE Vec add_product(Vec sum, Vec a, Vec b) { return bf16_dot(sum, a, b); }
};
#endif

// a(n, k) = a[n * lda + k] or a[k * lda + n].
enum class Order { kRowMajor, kStepMajor };
// What the sum starts from: 0, c, or c times a factor for each lane.
enum class Start { kZero, kAdd, kRescale };

// Rows of c computed at a time: enough sums to hide the latency of a multiply-add. A power of two
// that divides kLanes.
template <int kVectors>
constexpr int tile_rows() {
  return kVectors > 2
             ? kTileRows
             : (kVectors == 2 ? smaller(kLanes, 2 * kTileRows) : smaller(kLanes, 4 * kTileRows));
}
static_assert(kLanes % kTileRows == 0);

// One tile of tile_rows<kVectors>() rows of c. ldb and ldc are in cells.
template <class Dot, int kVectors, Order kOrder, Start kStart>
FLASHINT8_INLINE void tile_product(const float* a, int64_t lda, const float* b, int64_t ldb,
                                   float* c, int64_t ldc, int64_t steps, const Vec* factor) {
  constexpr int kRows = tile_rows<kVectors>();
  Vec sum[kRows][kVectors];
  FLASHINT8_UNROLL
  for (int n = 0; n < kRows; ++n) {
    FLASHINT8_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      if constexpr (kStart == Start::kZero) {
        sum[n][v] = zero();
      } else {
        sum[n][v] = load(c + n * ldc + v * kLanes);
        if constexpr (kStart == Start::kRescale) sum[n][v] = mul(sum[n][v], factor[v]);
      }
    }
  }
  for (int64_t k = 0; k < steps; ++k) {
    Vec lanes[kVectors];
    FLASHINT8_UNROLL
    for (int v = 0; v < kVectors; ++v) lanes[v] = load(b + k * ldb + v * kLanes);
    FLASHINT8_UNROLL
    for (int n = 0; n < kRows; ++n) {
      const Vec cell = set1(kOrder == Order::kRowMajor ? a[n * lda + k] : a[k * lda + n]);
      FLASHINT8_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        sum[n][v] = Dot::add_product(sum[n][v], cell, lanes[v]);
      }
    }
  }
  FLASHINT8_UNROLL
  for (int n = 0; n < kRows; ++n) {
    FLASHINT8_UNROLL
    for (int v = 0; v < kVectors; ++v) store(c + n * ldc + v * kLanes, sum[n][v]);
  }
}

// Rows [0, rows) of c, rounded up to whole tiles.
template <class Dot, int kVectors, Order kOrder, Start kStart>
void panel_product(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc,
                   int64_t rows, int64_t steps, const Vec* factor = nullptr) {
  constexpr int kRows = tile_rows<kVectors>();
  for (int64_t n = 0; n < rows; n += kRows) {
    tile_product<Dot, kVectors, kOrder, kStart>(a + n * (kOrder == Order::kRowMajor ? lda : 1), lda,
                                                b, ldb, c + n * ldc, ldc, steps, factor);
  }
}

// Cells of kLanes lanes (a row each, nullptr: zeros), transposed: out[cell * ld + lane]. `length`
// elements a row; cells past the end up to a multiple of kLanes are written as zeros. `negate`
// flips the sign.
template <class Dot, class T>
void pack_lanes(const T* const* rows, int64_t length, bool negate, float* out, int64_t ld) {
  const int64_t per_chunk = kLanes * Dot::kPerCell;
  for (int64_t k = 0; k < length; k += per_chunk) {
    const int64_t valid = smaller(per_chunk, length - k);
    Vec cells[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      if (rows[lane] == nullptr) {
        cells[lane] = zero();
        continue;
      }
      if constexpr (Dot::kPerCell == 1) {
        cells[lane] = valid == kLanes ? load(rows[lane] + k) : load_partial(rows[lane] + k, valid);
        if (negate) cells[lane] = sub(zero(), cells[lane]);
      } else {
#ifdef FLASHINT8_HAS_BF16_DOT
        cells[lane] = load_bf16_pairs(reinterpret_cast<const BF16*>(rows[lane]) + k, valid);
        if (negate) cells[lane] = negate_bf16_pairs(cells[lane]);
#endif
      }
    }
    transpose(cells);
    float* to = out + k / Dot::kPerCell * ld;
    for (int i = 0; i < kLanes; ++i) store(to + i * ld, cells[i]);
  }
}

}  // namespace
}  // namespace flashint8::cpu
