// The Hopper gemm's part of the plan.
#pragma once

#include <cstdint>

#include "flashint8/plan.h"

namespace flashint8 {

constexpr int64_t kMaxWorkspace = int64_t{32} << 20;  // in bytes, of any linear kernel

// Whether it can multiply this: a plain matrix x, and rows that the copy engine reads.
// `vectorized`: 16-byte loads from both.
bool sm90_can_multiply(const Int8LinearParams& params, const Card& card, bool vectorized);

// Its tile, clusters and grid for that problem.
LinearPlan sm90_plan(const Int8LinearParams& params, const Card& card);

}  // namespace flashint8
