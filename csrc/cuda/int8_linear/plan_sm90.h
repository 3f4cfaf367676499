// The part of the plan that the kernels built for Hopper have.
#pragma once

#include <cstdint>

#include "flashint8/plan.h"

namespace flashint8 {

constexpr int64_t kMaxWorkspace = int64_t{32} << 20;     // in bytes, of any linear kernel
constexpr int64_t kMostGemvWeights = int64_t{36} << 20;  // that a gemv of 9 to 16 rows reads

// Whether x is a plain matrix: its rows all begin one stride behind another, and do not overlap.
inline bool is_matrix(const Int8LinearParams& p) {
  return p.x_rows.size[2] == 1 && p.x_rows.stride[3] >= p.k;
}

// The row of kGemvSm90Tiles for this, or -1: others are faster, or it cannot. `vectorized`: 16-byte
// loads from x and weight.
int gemv_sm90_tile(const Int8LinearParams& params, const Card& card, bool vectorized);

LinearPlan gemv_sm90_plan(const Int8LinearParams& params, int tile);

// Whether the gemm can multiply this: a plain matrix x, and rows that the copy engine reads.
bool sm90_can_multiply(const Int8LinearParams& params, const Card& card, bool vectorized);

// The gemm's tile, clusters and grid for that problem.
LinearPlan sm90_plan(const Int8LinearParams& params, const Card& card);

}  // namespace flashint8
