// int8_linear for many rows of x. x is packed once, transposed, in panels of kPanelRows rows (the
// lanes of the tile product); a piece converts kStepBlock columns of its rows of the weight at a
// time, and multiplies them with every panel. Its sums stay in scratch until the last column.
#pragma once

#include "kernels.h"
#include "tile_product.h"

namespace flashint8::cpu {
namespace {

constexpr int64_t kPanelRows = kLanes * kTileVectors;
constexpr int64_t kChannelBlock = 64;  // rows of the weight in a piece, at most
// Cells of k: kStepBlock x kPanelRows cells of x are what L1 holds while a panel is multiplied.
constexpr int64_t kStepBlock = 128;
constexpr int64_t kTileStride = kStepBlock + kLanes;  // no power of two: rows share no cache set

template <class Dot>
int64_t packed_cells(int64_t k) {
  return round_up((k + Dot::kPerCell - 1) / Dot::kPerCell, kLanes);
}

template <class Dot>
int64_t packed_x_gemm_size(const Int8LinearParams& p, int64_t m_count) {
  return round_up(m_count, kPanelRows) * packed_cells<Dot>(p.k);
}

inline int64_t gemm_scratch_size(int64_t m_count) {
  return kChannelBlock * kTileStride + round_up(m_count, kPanelRows) * kChannelBlock;
}

// Lanes of the panel that begins at row m: what its rows fill, so that the last is not sparse.
inline int64_t panel_lanes(int64_t m_count, int64_t m) {
  return round_up(smaller(kPanelRows, m_count - m), kLanes);
}

// packed[panel][cell][row of the panel], for rows [begin, end) of m_count.
template <class Dot, class T>
void pack_x_gemm(const Int8LinearParams& p, int64_t m_begin, int64_t m_count, float* packed,
                 int64_t begin, int64_t end) {
  const int64_t panel_size = packed_cells<Dot>(p.k) * kPanelRows;
  for (int64_t m = begin; m < end; m += kLanes) {
    const T* rows[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      rows[i] = m + i < m_count
                    ? static_cast<const T*>(p.x) + x_row_offset(p.x_rows, m_begin + m + i)
                    : nullptr;
    }
    pack_lanes<Dot>(rows, p.k, false, packed + m / kPanelRows * panel_size + m % kPanelRows,
                    panel_lanes(m_count, m / kPanelRows * kPanelRows));
  }
}

// Rows [0, rows) of the weight from column `k`, `columns` of them, as cells; rows up to a multiple
// of kLanes, and cells past the last column, are 0.
template <class Dot>
void convert_weight(const int8_t* weight, int64_t stride, int64_t rows, int64_t columns,
                    float* tile, int64_t ld) {
  constexpr int64_t kPerVector = kLanes * Dot::kPerCell;
  const int64_t whole = columns / kPerVector * kPerVector;
  for (int64_t n = 0; n < rows; ++n) {
    const int8_t* w = weight + n * stride;
    float* to = tile + n * ld;
    for (int64_t k = 0; k < columns; k += kCacheLine) prefetch(w + k, columns);  // the next tile
    for (int64_t k = 0; k < whole; k += kPerVector, to += kLanes) store(to, Dot::load_int8(w + k));
    if (whole < columns) store(to, Dot::load_int8_partial(w + whole, columns - whole));
  }
  const int64_t cells = round_up(columns, kPerVector) / Dot::kPerCell;
  for (int64_t n = rows; n < round_up(rows, kLanes); ++n) {
    memset(tile + n * ld, 0, static_cast<size_t>(cells) * sizeof(float));
  }
}

// Transposes a panel's sums and writes them, scaled, with the bias and the activation. Gated, two
// channels become one before they are transposed: they are neighbours then.
template <class T>
void write_panel(const Int8LinearParams& p, int64_t m_begin, int64_t m_count, int64_t n_begin,
                 int64_t n_end, const float* sums) {
  const T* bias = static_cast<const T*>(p.bias);
  const bool gated = p.activation == Activation::kSiluMul;
  const int64_t columns = gated ? p.n / 2 : p.n;
  for (int64_t n = n_begin; n < n_end; n += kLanes) {
    const int64_t channels = smaller(kLanes, n_end - n), valid = gated ? channels / 2 : channels;
    float scale[kLanes], shift[kLanes];
    store(scale, load_partial(p.weight_scale + n, channels));
    store(shift, bias ? load_partial(bias + n, channels) : zero());
    for (int64_t m = 0; m < m_count; m += kLanes) {
      Vec t[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const Vec sum = load(sums + (n - n_begin + i) * kPanelRows + m);
        t[i] = fma(sum, set1(scale[i]), set1(shift[i]));
      }
      if (gated) {
        for (int i = 0; i < kLanes / 2; ++i) {
          t[i] = mul(activate(t[2 * i], p.activation), t[2 * i + 1]);
        }
      } else if (p.activation != Activation::kNone) {
        for (int64_t i = 0; i < channels; ++i) t[i] = activate(t[i], p.activation);
      }
      transpose(t);
      T* out = static_cast<T*>(p.out) + (m_begin + m) * columns + (gated ? n / 2 : n);
      for (int64_t i = 0; i < smaller(kLanes, m_count - m); ++i) {
        if (valid == kLanes) {
          store(out + i * columns, t[i]);
        } else {
          store_partial(out + i * columns, t[i], valid);
        }
      }
    }
  }
}

template <class Dot, class T>
void linear_gemm(const Int8LinearParams& p, const LinearWork& work, float* scratch) {
  const int64_t channels = work.n_end - work.n_begin;
  const int64_t cells = packed_cells<Dot>(p.k);
  const int64_t panels = (work.m_count + kPanelRows - 1) / kPanelRows;
  float* tile = scratch;
  float* sums = tile + kChannelBlock * kTileStride;
  constexpr int64_t kPanelSums = kChannelBlock * kPanelRows;
  memset(sums, 0, static_cast<size_t>(panels * kPanelSums) * sizeof(float));
  // One panel: the tile is used once, so that it should be small.
  const int64_t channel_block = panels > 1 ? kChannelBlock : kLanes;
  for (int64_t cell = 0; cell < cells; cell += kStepBlock) {
    const int64_t steps = smaller(kStepBlock, cells - cell);
    const int64_t column = cell * Dot::kPerCell;
    for (int64_t c = 0; c < channels; c += channel_block) {
      const int64_t rows = smaller(channel_block, channels - c);
      convert_weight<Dot>(p.weight + (work.n_begin + c) * p.weight_stride + column, p.weight_stride,
                          rows, smaller(steps * Dot::kPerCell, p.k - column), tile, kTileStride);
      for (int64_t m = 0; m < work.m_count; m += kPanelRows) {
        const int64_t lanes = panel_lanes(work.m_count, m);
        const auto multiply =
            lanes == kLanes       ? panel_product<Dot, 1, Order::kRowMajor, Start::kAdd>
            : lanes == 2 * kLanes ? panel_product<Dot, 2, Order::kRowMajor, Start::kAdd>
            : lanes == 3 * kLanes ? panel_product<Dot, 3, Order::kRowMajor, Start::kAdd>
                                  : panel_product<Dot, kTileVectors, Order::kRowMajor, Start::kAdd>;
        multiply(tile, kTileStride, work.packed_x + m * cells + cell * lanes, lanes,
                 sums + m / kPanelRows * kPanelSums + c * kPanelRows, kPanelRows, rows, steps,
                 nullptr);
      }
    }
  }
  for (int64_t m = 0; m < work.m_count; m += kPanelRows) {
    write_panel<T>(p, work.m_begin + m, smaller(kPanelRows, work.m_count - m), work.n_begin,
                   work.n_end, sums + m / kPanelRows * kPanelSums);
  }
}

}  // namespace
}  // namespace flashint8::cpu
