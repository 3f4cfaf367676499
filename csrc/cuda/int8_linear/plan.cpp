// Which INT8 linear kernel runs: a gemv for few rows of x, by a table; else the gemm, of whose
// tiles and splits those that the card rules out are dropped and an estimate of the time decides.
// Earlier candidates win ties.
#include "flashint8/plan.h"

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "variants.h"

namespace flashint8 {

namespace {

// What a multiprocessor does in a clock. Rough, and meant only to rank candidates.
struct Rates {
  double memory_bytes;  // its share of device memory's bandwidth
  double l2_bytes;
  double shared_bytes;
  double mma;  // multiply-adds of mma.sync with fp32 sums
};

Rates rates_of(int compute_capability) {
  switch (compute_capability) {
    case 80: return {10.0, 24.0, 128.0, 1024.0};
    case 90: return {13.0, 26.0, 128.0, 1300.0};
    case 86:
    case 89: return {6.0, 20.0, 128.0, 512.0};
    default:
      return compute_capability >= 100 && compute_capability < 120
                 ? Rates{16.0, 28.0, 128.0, 1300.0}
                 : Rates{7.0, 20.0, 128.0, 512.0};
  }
}

constexpr double kLaunchClocks = 3500;    // a launch, its first loads and its last stores
constexpr double kSplitSumClocks = 2500;  // the second launch, hidden in part
constexpr int64_t kMaxWorkspace = int64_t{32} << 20;
constexpr int kSharedReserved = 1024;  // of each block, by the driver

bool aligned(const void* pointer, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// 16-byte copies from both tensors, at offsets that fit 32 bits in units of 16 bytes.
bool can_vectorize(const Int8LinearParams& p) {
  if (!aligned(p.x, 16) || !aligned(p.weight, 16)) return false;
  if (p.n > 1 && p.weight_stride % 16 != 0) return false;
  int64_t extent = 0;
  for (int d = 0; d < 4; ++d) {
    if (p.x_rows.size[d] <= 1) continue;
    if (p.x_rows.stride[d] % 8 != 0 || p.x_rows.stride[d] < 0) return false;
    extent += (p.x_rows.size[d] - 1) * p.x_rows.stride[d];
  }
  constexpr int64_t kMaxPieces = int64_t{1} << 32;
  return extent / 8 < kMaxPieces && (p.n - 1) * (p.weight_stride / 16) < kMaxPieces;
}

struct Candidate {
  LinearPlan plan;
  double clocks = 0;
};

double weight_bytes(const Int8LinearParams& p) { return static_cast<double>(p.n) * p.k; }

// The row of kGemvTiles for few rows of x, or -1: the gemm is faster. Measured on an H100
// (docs/performance.md). Many warps a block hide the latency of long rows, more blocks even out the
// end of many tiles; with 17 rows and more, large weights are the gemm's, which reads x less often.
int gemv_tile(const Int8LinearParams& p, const Card& card, bool vectorized) {
  constexpr int64_t kLongRow = 2048;
  constexpr int64_t kLargeWeight = int64_t{16} << 20;
  if (!vectorized) return 4;
  if (p.m <= 8) return p.k >= kLongRow && p.n <= 6 * kGemvBlockN * card.sm_count ? 0 : 1;
  if (p.m <= 16) return 2;
  return p.m <= 32 && p.n * p.k <= kLargeWeight ? 3 : -1;
}

LinearPlan gemv_plan(const Int8LinearParams& p, const Card& card, const GemvTile& tile) {
  LinearPlan plan;
  plan.kernel = LinearKernel::kGemv;
  plan.block_m = tile.block_m;
  plan.block_n = kGemvBlockN;
  plan.block_k = kGemvUnit * tile.num_warps;
  plan.num_warps = tile.num_warps;
  plan.stages = 1;
  plan.vectorized = tile.vectorized;
  const int64_t tiles = std::max<int64_t>(1, ceil_div(p.n, kGemvBlockN));
  // As many blocks as the chip holds, or fewer, so that each has the same number of tiles.
  const int64_t rounds = ceil_div(tiles, int64_t{tile.min_blocks} * card.sm_count);
  plan.num_blocks = ceil_div(p.m, tile.block_m) * ceil_div(tiles, rounds);
  return plan;
}

Candidate gemm_candidate(const Int8LinearParams& p, const Card& card, const GemmTile& tile,
                         int64_t splits) {
  Candidate c;
  const int64_t tiles_m = ceil_div(p.m, tile.block_m), tiles_n = ceil_div(p.n, tile.block_n);
  const int64_t tiles = tiles_m * tiles_n;
  LinearPlan& plan = c.plan;
  plan.kernel = LinearKernel::kGemm;
  plan.block_m = tile.block_m;
  plan.block_n = tile.block_n;
  plan.block_k = gemm_block_k(tile);
  plan.num_warps = gemm_warps(tile);
  plan.stages = tile.stages;
  plan.vectorized = true;
  plan.shared_bytes = gemm_shared_bytes(tile);
  plan.num_splits = static_cast<int>(splits);
  plan.num_blocks = tiles * splits;
  plan.workspace_bytes = splits > 1 ? plan.num_blocks * tile.block_m * tile.block_n * 4 : 0;

  const Rates rates = rates_of(card.compute_capability);
  const int64_t resident = std::clamp<int64_t>(
      (card.shared_memory_per_block + kSharedReserved) / (plan.shared_bytes + kSharedReserved), 1,
      plan.num_warps >= 8 ? (tile.block_m >= 128 ? 1 : 2) : 2);
  // Clocks of one block alone on a multiprocessor: the larger of its products and its shared-memory
  // traffic; where two are there, each overlaps what
  // the other leaves idle.
  const double block_k =
      static_cast<double>(ceil_div(ceil_div(p.k, plan.block_k), splits)) * plan.block_k;
  const double products = block_k * tile.block_m * tile.block_n / rates.mma;
  const double warp_m = tile.block_m / tile.warps_m, warp_n = tile.block_n / tile.warps_n;
  const double shared =
      block_k *
      (tile.warps_m * tile.warps_n * (2 * warp_m + warp_n) + 2 * tile.block_m + tile.block_n) /
      rates.shared_bytes;
  const double per_sm = static_cast<double>(ceil_div(plan.num_blocks, card.sm_count));
  const double fill = (resident >= 2 && per_sm >= 2) || plan.num_warps >= 8 ? 1.15 : 1.7;
  const double block = std::max(products, shared) * fill;
  const double memory = weight_bytes(p) + 2.0 * p.m * p.k + 2.0 * p.m * p.n;
  const double partials =
      splits > 1 ? 8.0 * static_cast<double>(plan.num_blocks) * tile.block_m * tile.block_n : 0.0;
  const double l2 = weight_bytes(p) * tiles_m + 2.0 * tiles_n * p.m * p.k;
  const double needs[] = {per_sm * block, memory / (card.sm_count * rates.memory_bytes),
                          l2 / (card.sm_count * rates.l2_bytes)};
  const double longest = *std::max_element(std::begin(needs), std::end(needs));
  const double others = needs[0] + needs[1] + needs[2] - longest;
  c.clocks = kLaunchClocks + 1000 + longest + 0.2 * others +  // they overlap, but not wholly
             (splits > 1 ? kSplitSumClocks + partials / (card.sm_count * rates.l2_bytes) : 0.0);
  return c;
}

// Where the library's product on converted weights beats the gemm: on data-centre cards from Hopper
// on, whose own matrix instructions (wgmma) are 1.6 times as fast as the mma.sync that the gemm
// uses, once x has rows enough to hide the conversion.
bool library_is_faster(const Int8LinearParams& p, const Card& card) {
  constexpr int64_t kManyRows = 512;
  if (card.compute_capability < 90 || card.compute_capability >= 120) return false;
  if (p.m < kManyRows || p.k < 1) return false;
  return p.x_rows.size[2] == 1 && p.x_rows.stride[3] >= p.k;  // a plain matrix
}

LinearPlan library_plan(const Int8LinearParams& p) {
  constexpr int64_t kScratchBytes = int64_t{32} << 20;
  LinearPlan plan;
  plan.kernel = LinearKernel::kLibrary;
  plan.num_warps = 8;  // of the conversion
  plan.stages = 1;
  const int64_t fit = std::max<int64_t>(1, kScratchBytes / (2 * p.k));
  const int64_t rounds = ceil_div(p.n, fit);
  plan.block_n = static_cast<int>(std::min(p.n, ceil_div(ceil_div(p.n, rounds), 128) * 128));
  if (plan.block_n > fit) plan.block_n = static_cast<int>(fit);
  plan.block_m = static_cast<int>(std::min<int64_t>(p.m, INT32_MAX));
  plan.num_blocks = ceil_div(p.n, plan.block_n);
  plan.workspace_bytes = 2 * p.k * plan.block_n;
  return plan;
}

}  // namespace

LinearPlan plan_int8_linear(const Int8LinearParams& params, const Card& card) {
  const bool vectorized = can_vectorize(params);
  if (vectorized && library_is_faster(params, card)) {
    LinearPlan plan = library_plan(params);
    plan.dtype = params.dtype;
    return plan;
  }
  const int gemv = gemv_tile(params, card, vectorized);
  if (gemv >= 0) {
    LinearPlan plan = gemv_plan(params, card, kGemvTiles[gemv]);
    plan.dtype = params.dtype;
    plan.dependent_launch = card.code >= 90;
    return plan;
  }
  Candidate best;
  bool found = false;
  for (const GemmTile& tile : kGemmTiles) {
    const int64_t tiles = ceil_div(params.m, tile.block_m) * ceil_div(params.n, tile.block_n);
    const int64_t k_tiles = ceil_div(params.k, gemm_block_k(tile));
    for (int64_t splits = 1; splits <= 16; ++splits) {
      if (splits > 1 && (splits > k_tiles / 2 || tiles * splits > 4 * card.sm_count)) break;
      const Candidate c = gemm_candidate(params, card, tile, splits);
      if (c.plan.workspace_bytes > kMaxWorkspace) break;
      if (c.plan.shared_bytes > card.shared_memory_per_block) continue;
      if (found && c.clocks >= best.clocks) continue;
      best = c;
      found = true;
    }
  }
  best.plan.dtype = params.dtype;
  return best.plan;
}

}  // namespace flashint8
