// Which INT8 linear kernel runs: every built tile is a candidate; those the tensors or the card
// rule out are dropped; an estimate of the time decides. Earlier candidates win ties.
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

// The gemv: weights come once for each tile of rows, x once for each tile of channels, past L1.
Candidate gemv_candidate(const Int8LinearParams& p, const Card& card, const GemvTile& tile,
                         int num_warps) {
  Candidate c;
  const int64_t tiles_m = ceil_div(p.m, tile.block_m), tiles_n = ceil_div(p.n, tile.block_n);
  const int64_t tiles = tiles_m * tiles_n;
  LinearPlan& plan = c.plan;
  plan.kernel = LinearKernel::kGemv;
  plan.block_m = tile.block_m;
  plan.block_n = tile.block_n;
  plan.block_k = kLinearChunkK * num_warps;
  plan.num_warps = num_warps;
  plan.stages = tile.stages;
  plan.vectorized = tile.vectorized;
  plan.shared_bytes = gemv_shared_bytes(tile, num_warps);
  // Shared memory of a multiprocessor is about that of its largest block; the blocks that fit stay
  // and take tiles in turn.
  const int64_t resident = std::clamp<int64_t>(
      (card.shared_memory_per_block + kSharedReserved) / (plan.shared_bytes + kSharedReserved), 1,
      std::max(1, 24 / num_warps));
  plan.num_blocks = std::min(tiles, resident * card.sm_count);

  const Rates rates = rates_of(card.compute_capability);
  const double busy = std::min<double>(static_cast<double>(plan.num_blocks), card.sm_count);
  const double memory = weight_bytes(p) + 2.0 * p.m * p.k;
  const double l2 = weight_bytes(p) * tiles_m + 2.0 * tiles_n * p.m * p.k;
  // Bytes on the way bound what one multiprocessor draws: a latency of about 1200 clocks.
  const double in_flight =
      static_cast<double>(std::min<int64_t>(resident, ceil_div(tiles, card.sm_count))) * num_warps *
      tile.stages * 64 * tile.block_n;
  const double drawn = std::min(in_flight / 1200.0, rates.l2_bytes * 2);
  const double waves = static_cast<double>(ceil_div(tiles, card.sm_count)) * card.sm_count / tiles;
  const double chunk_waste =
      static_cast<double>(ceil_div(ceil_div(p.k, kLinearChunkK), num_warps)) * num_warps *
      kLinearChunkK / std::max<int64_t>(p.k, 1);
  c.clocks = kLaunchClocks +
             std::max({memory / (card.sm_count * rates.memory_bytes),
                       l2 / (card.sm_count * rates.l2_bytes),
                       l2 * (0.5 + 0.5 * std::min(waves, 2.0)) / (busy * drawn),
                       1.0 * ceil_div(tiles, card.sm_count) * tile.block_m * tile.block_n * p.k *
                           chunk_waste / (rates.mma * 0.4)}) +
             20.0 * num_warps;
  if (!tile.vectorized) c.clocks *= 3;
  return c;
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
  // traffic; two blocks overlap what each leaves idle.
  const double block_k =
      static_cast<double>(ceil_div(ceil_div(p.k, plan.block_k), splits)) * plan.block_k;
  const double products = block_k * tile.block_m * tile.block_n / rates.mma;
  const double warp_m = tile.block_m / tile.warps_m, warp_n = tile.block_n / tile.warps_n;
  const double shared =
      block_k *
      (tile.warps_m * tile.warps_n * (2 * warp_m + warp_n) + 2 * tile.block_m + tile.block_n) /
      rates.shared_bytes;
  const double fill = resident >= 2 || plan.num_warps >= 8 ? 1.15 : 1.25;
  const double block = std::max(products, shared) * fill;
  const double per_sm = static_cast<double>(ceil_div(plan.num_blocks, card.sm_count));
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

}  // namespace

LinearPlan plan_int8_linear(const Int8LinearParams& params, const Card& card) {
  const bool vectorized = can_vectorize(params);
  Candidate best;
  bool found = false;
  const auto consider = [&](const Candidate& c) {
    if (c.plan.shared_bytes > card.shared_memory_per_block) return;
    if (c.plan.num_blocks > INT32_MAX) return;
    if (!found || c.clocks < best.clocks) best = c;
    found = true;
  };
  for (const GemvTile& tile : kGemvTiles) {
    if (tile.vectorized != vectorized) continue;
    // more than two tiles of rows: the gemm reads the weights less often
    if (vectorized && params.m > 2 * tile.block_m) continue;
    for (const int num_warps : {8, 16, 4}) {
      if (num_warps > gemv_max_warps(tile)) continue;
      consider(gemv_candidate(params, card, tile, num_warps));
    }
  }
  if (vectorized) {
    for (const GemmTile& tile : kGemmTiles) {
      const int64_t tiles = ceil_div(params.m, tile.block_m) * ceil_div(params.n, tile.block_n);
      const int64_t k_tiles = ceil_div(params.k, gemm_block_k(tile));
      for (int64_t splits = 1; splits <= 16; ++splits) {
        if (splits > 1 && (splits > k_tiles / 2 || tiles * splits > 4 * card.sm_count)) break;
        const Candidate c = gemm_candidate(params, card, tile, splits);
        if (c.plan.workspace_bytes > kMaxWorkspace) break;
        consider(c);
      }
    }
  }
  best.plan.dtype = params.dtype;
  return best.plan;
}

}  // namespace flashint8
