// Which tile and which clusters the Hopper gemm takes: those with the least estimated time.
#include "plan_sm90.h"

#include <algorithm>
#include <cstdint>

#include "variants.h"

namespace flashint8 {

namespace {

// Clusters of `size` blocks that run at once, a block a multiprocessor. A cluster lies within one
// of the parts of the chip, which have 16 or 18 multiprocessors, some of them switched off:
// measured on an H100 with 132, others in proportion.
int64_t clusters_at_once(int size, const Card& card) {
  constexpr int kMeasured[kSm90MaxCluster + 1] = {0, 132, 66, 40, 24, 22, 17, 15, 15};
  return std::max(int64_t{1}, int64_t{kMeasured[size]} * card.sm_count / 132);
}

// In microseconds, fitted to 3,000 measurements on an H100 (docs/performance.md) and meant only to
// rank candidates. By tile: the time of 64 k, and its factor where a block reads all rows of x for
// itself. That is the faster way in the end, where many tiles follow each other.
constexpr double kStep[kNumSm90Tiles] = {0.283, 0.375, 0.472, 0.567};
constexpr double kAlone[kNumSm90Tiles] = {1.13, 1.07, 1.30, 1.23};
constexpr double kAloneLong = 0.95;
constexpr int64_t kLongRounds = 4;
constexpr double kFourBlocks = 1.08;  // where four blocks keep step
constexpr double kTile = 1.20;        // the start and end of a tile,
constexpr double kTile256 = 2.35;     // and for 256 rows
constexpr double kSplit = 0.62;       // of a split tile: the meeting of its blocks,
constexpr double kSplit256 = 2.21;    // their exchange of sums, for 256 rows,
constexpr double kSplitBlock = 0.19;  // and for each block
constexpr double kBytesPerMicrosecond = 3.0e6;
constexpr double kRamp = 1.0;

double estimate(const Int8LinearParams& p, int tile, int cluster_n, int cluster_k,
                int64_t cluster_tiles, const Card& card) {
  const double part_of_256 = kSm90Tiles[tile].block_m / 256.0;
  const int64_t rounds = ceil_div(cluster_tiles, clusters_at_once(cluster_n * cluster_k, card));
  const int block_k = kSm90Tiles[tile].block_k;
  const int64_t steps = ceil_div(gemm_k_tiles(p.k, block_k), cluster_k) * block_k / 64;
  double step = kStep[tile];
  if (cluster_n == 1) step *= rounds < kLongRounds ? kAlone[tile] : kAloneLong;
  double round = static_cast<double>(steps) * step + kTile + kTile256 * part_of_256;
  if (cluster_k > 1) round += kSplit + kSplit256 * part_of_256 + kSplitBlock * cluster_k;
  const double time = static_cast<double>(rounds) * round * (cluster_n == 4 ? kFourBlocks : 1.0);
  const double m = static_cast<double>(p.m), n = static_cast<double>(p.n);
  const double k = static_cast<double>(p.k);
  return std::max(time, (n * k + 2.0 * m * (k + n)) / kBytesPerMicrosecond + kRamp);
}

// With few rows the time is that of reading the weights, and the kernels for few rows are faster:
// always up to 16 rows; up to 32 where they, too, are, or where the tiles leave many
// multiprocessors without work. Measured, as the thresholds of plan.cpp.
bool few_rows(const Int8LinearParams& p, const Card& card) {
  constexpr int64_t kFew = 16, kSome = 32;
  constexpr int64_t kSmallWeight = int64_t{4} << 20, kMediumWeight = int64_t{17} << 20;
  if (p.m <= kFew || p.m > kSome) return p.m <= kFew;
  if (p.n * p.k <= kMediumWeight) return p.n * p.k <= kSmallWeight;
  const int64_t tiles = ceil_div(p.n, kSm90BlockN);
  return 5 * tiles < 4 * ceil_div(tiles, card.sm_count) * card.sm_count;
}

}  // namespace

bool sm90_can_multiply(const Int8LinearParams& p, const Card& card, bool vectorized) {
  constexpr int64_t kMostBytes = int64_t{1} << 40;  // between rows
  if (!has_hopper_code(card) || !vectorized || p.k < 1 || few_rows(p, card)) return false;
  if (p.k > INT32_MAX || p.weight_stride >= kMostBytes || p.weight_stride < p.k) return false;
  const int64_t x_stride = p.x_rows.stride[3];
  return p.x_rows.size[2] == 1 && x_stride >= p.k && 2 * x_stride < kMostBytes;
}

LinearPlan sm90_plan(const Int8LinearParams& p, const Card& card) {
  LinearPlan plan;
  plan.kernel = LinearKernel::kGemmSm90;
  plan.block_n = kSm90BlockN;
  plan.num_warps = kSm90Threads / 32;
  double best = 0;
  for (int tile = 0; tile < kNumSm90Tiles; ++tile) {
    if (sm90_shared_bytes(kSm90Tiles[tile]) > card.shared_memory_per_block) continue;
    const int steps = gemm_k_tiles(p.k, kSm90Tiles[tile].block_k);
    for (const int cluster_n : {1, 2, 4}) {
      const int64_t tiles =
          ceil_div(p.m, kSm90Tiles[tile].block_m) * ceil_div(p.n, int64_t{kSm90BlockN} * cluster_n);
      if (tiles > INT32_MAX / kSm90MaxCluster) continue;
      for (int cluster_k = 1; cluster_n * cluster_k <= kSm90MaxCluster; ++cluster_k) {
        if (cluster_k > 1 && 2 * cluster_k > steps) break;
        const double time = estimate(p, tile, cluster_n, cluster_k, tiles, card);
        if (plan.block_m != 0 && time >= best) continue;
        best = time;
        plan.block_m = kSm90Tiles[tile].block_m;
        plan.block_k = kSm90Tiles[tile].block_k;
        plan.stages = kSm90Tiles[tile].stages;
        plan.shared_bytes = sm90_shared_bytes(kSm90Tiles[tile]);
        plan.cluster = cluster_n;
        plan.num_splits = cluster_k;
        // Blocks that share a tile leave after it; others go on to the next.
        const int64_t at_once = clusters_at_once(cluster_n, card);
        const int64_t clusters = cluster_k > 1 ? tiles : std::min(tiles, at_once);
        plan.num_blocks = clusters * cluster_n * cluster_k;
      }
    }
  }
  return plan;
}

}  // namespace flashint8
