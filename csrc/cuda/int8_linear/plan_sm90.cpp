// Whether and with which tile the gemv built for Hopper runs, by measured thresholds; which tile
// and which clusters the Hopper gemm takes: those with the least estimated time.
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
  constexpr int kMeasured[kSm90MaxCluster + 1] = {0, 132, 66, 39, 24, 22, 17, 15, 15};
  return std::max(int64_t{1}, int64_t{kMeasured[size]} * card.sm_count / 132);
}

// In microseconds, fitted to 5,100 measurements on an H100 (docs/performance.md) and meant only to
// rank candidates. By tile: the time of 64 k, and its factor where a block reads all rows of x for
// itself.
constexpr double kStep[kNumSm90Tiles] = {0.263, 0.305, 0.351, 0.447, 0.598};
constexpr double kAlone[kNumSm90Tiles] = {0.93, 1.01, 1.37, 1.34, 1.18};
constexpr double kTile = 1.84;        // the start and end of a tile,
constexpr double kTile256 = 2.21;     // and for 256 rows
constexpr double kSplit = 0.74;       // of a split tile: the meeting of its blocks,
constexpr double kSplit256 = 2.99;    // their exchange of sums, for 256 rows,
constexpr double kSplitBlock = 0.18;  // and for each block
constexpr double kBytesPerMicrosecond = 3.4e6;
constexpr double kRamp = 1.23;

constexpr double kStreamedStep = 1.05;  // of a step of streamed tiles, and where several tiles of
constexpr double kStreamedRows = 1.11;  // rows need the same weights at different times
constexpr double kWholeStep = 0.97;     // of the whole tiles before them
constexpr double kMeeting = 0.63;       // of blocks that share a tile,
constexpr double kSums256 = 4.39;       // the sums of 256 rows that are left,
constexpr double kSharers256 = 1.92;    // and those that are added, for each block that shares one

double time_of_tile(double part_of_256) { return kTile + kTile256 * part_of_256; }

double time_of_memory(const Int8LinearParams& p) {
  const double m = static_cast<double>(p.m), n = static_cast<double>(p.n);
  const double k = static_cast<double>(p.k);
  return (n * k + 2.0 * m * (k + n)) / kBytesPerMicrosecond + kRamp;
}

double estimate(const Int8LinearParams& p, int tile, int cluster_n, int cluster_k,
                int64_t cluster_tiles, const Card& card) {
  const double part_of_256 = kSm90Tiles[tile].block_m / 256.0;
  const int64_t rounds = ceil_div(cluster_tiles, clusters_at_once(cluster_n * cluster_k, card));
  const int block_k = kSm90Tiles[tile].block_k;
  const int64_t steps = ceil_div(gemm_k_tiles(p.k, block_k), cluster_k) * block_k / 64;
  double step = kStep[tile];
  if (cluster_n == 1) step *= kAlone[tile];
  double round = static_cast<double>(steps) * step + time_of_tile(part_of_256);
  if (cluster_k > 1) round += kSplit + kSplit256 * part_of_256 + kSplitBlock * cluster_k;
  return std::max(static_cast<double>(rounds) * round, time_of_memory(p));
}

// Tiles to stream, or none, where they come out even. With few tiles left for so many clusters
// these take a round of whole tiles less.
int64_t streamed_tiles(int64_t cluster_tiles, int64_t clusters) {
  const int64_t left = cluster_tiles % clusters;
  const bool few = left > 0 && 2 * left <= clusters && cluster_tiles > clusters;
  return few ? left + clusters : left;
}

double estimate_streamed(const Int8LinearParams& p, int tile, int64_t cluster_tiles,
                         int64_t streamed, int64_t clusters) {
  const double part_of_256 = kSm90Tiles[tile].block_m / 256.0;
  const int block_k = kSm90Tiles[tile].block_k, tile_steps = gemm_k_tiles(p.k, block_k);
  const double step = kStep[tile] * block_k / 64;
  const double whole = static_cast<double>((cluster_tiles - streamed) / clusters);
  double steps = kStreamedStep * static_cast<double>(ceil_div(streamed * tile_steps, clusters));
  if (p.m > kSm90Tiles[tile].block_m) steps *= kStreamedRows;
  const double sharers =
      std::max(1.0, static_cast<double>(clusters) / static_cast<double>(streamed));
  const double time =
      step * (steps + kWholeStep * whole * tile_steps) + (whole + 1) * time_of_tile(part_of_256);
  return std::max(time, time_of_memory(p)) + kMeeting +
         (kSums256 + kSharers256 * sharers) * part_of_256;
}

// With few rows, and with some more of smaller weights, the portable gemm is faster than Hopper's:
// several of its blocks share a multiprocessor, so that one call starts while another ends.
// Measured, as the thresholds of plan.cpp.
bool has_few_rows(const Int8LinearParams& p) {
  constexpr int64_t kFewRows = 16, kSomeRows = 32, kLargeWeights = int64_t{40} << 20;
  return p.m <= (p.n * p.k < kLargeWeights ? kSomeRows : kFewRows);
}

// Whether so many blocks give most multiprocessors one.
bool is_most_of_a_round(int64_t blocks, const Card& card) {
  return 5 * blocks >= 3 * card.sm_count && blocks <= card.sm_count;
}

// Up to 16 rows of gemv_sm90, of which a multiprocessor holds two blocks: most have two; or one,
// where the gemv takes no such large weights, or where so few have one that the next call's find
// room beside them.
bool suits_sixteen_rows(int64_t blocks, int64_t weights, const Card& card) {
  if (5 * blocks > 8 * card.sm_count && blocks <= 2 * card.sm_count) return true;
  const bool large = weights > kMostGemvWeights;
  return is_most_of_a_round(blocks, card) && (large || 4 * blocks <= 3 * card.sm_count);
}

}  // namespace

int gemv_sm90_tile(const Int8LinearParams& p, const Card& card, bool vectorized) {
  constexpr int64_t kMostBytes = int64_t{1} << 26;  // between rows of weights
  if (!has_hopper_code(card) || !vectorized || p.m <= 8 || p.k < 1 || p.k % 16 != 0) return -1;
  if (!is_matrix(p) || p.weight_stride >= kMostBytes) return -1;
  for (int i = 0; i < kNumGemvSm90Tiles; ++i) {
    const GemvSm90Tile& tile = kGemvSm90Tiles[i];
    if (p.m > tile.block_m || p.m <= tile.block_m - 16) continue;
    if (gemv_sm90_shared_bytes(tile) > card.shared_memory_per_block) continue;
    const int64_t blocks = ceil_div(p.n, tile.block_n);
    const bool suits = tile.block_m == 16 ? suits_sixteen_rows(blocks, p.n * p.k, card)
                                          : is_most_of_a_round(blocks, card);
    if (suits) return i;
  }
  return -1;
}

LinearPlan gemv_sm90_plan(const Int8LinearParams& p, int tile) {
  const GemvSm90Tile& shape = kGemvSm90Tiles[tile];
  LinearPlan plan;
  plan.kernel = LinearKernel::kGemvSm90;
  plan.block_m = shape.block_m;
  plan.block_n = shape.block_n;
  plan.block_k = kGemvUnit * kGemvSm90Warps;
  plan.num_warps = kGemvSm90Warps;
  plan.stages = kGemvSm90Stages;
  plan.num_blocks = ceil_div(p.n, shape.block_n);
  plan.shared_bytes = gemv_sm90_shared_bytes(shape);
  return plan;
}

bool sm90_can_multiply(const Int8LinearParams& p, const Card& card, bool vectorized) {
  constexpr int64_t kMostBytes = int64_t{1} << 40;  // between rows
  if (!has_hopper_code(card) || !vectorized || p.k < 1 || has_few_rows(p)) return false;
  if (p.weight_stride >= kMostBytes) return false;
  if (p.n > 1 && p.weight_stride < p.k) return false;
  return is_matrix(p) && 2 * p.x_rows.stride[3] < kMostBytes;
}

LinearPlan sm90_plan(const Int8LinearParams& p, const Card& card) {
  constexpr int kStreamedCluster = 2;
  LinearPlan plan;
  plan.kernel = LinearKernel::kGemmSm90;
  plan.block_n = kSm90BlockN;
  plan.num_warps = kSm90Threads / 32;
  double best = 0;
  const auto take = [&](double time, const Sm90Tile& tile, int cluster_n, int cluster_k,
                        int64_t clusters) {
    if (plan.block_m != 0 && time >= best) return false;
    best = time;
    plan.block_m = tile.block_m;
    plan.block_k = tile.block_k;
    plan.stages = tile.stages;
    plan.shared_bytes = sm90_shared_bytes(tile);
    plan.cluster = cluster_n;
    plan.num_splits = cluster_k;
    plan.num_blocks = clusters * cluster_n * cluster_k;
    plan.streamed_tiles = 0;
    plan.workspace_bytes = 0;
    return true;
  };
  for (int i = 0; i < kNumSm90Tiles; ++i) {
    const Sm90Tile& tile = kSm90Tiles[i];
    if (sm90_shared_bytes(tile) > card.shared_memory_per_block) continue;
    const int64_t steps = gemm_k_tiles(p.k, tile.block_k);
    for (const int cluster_n : {1, 2, 4}) {
      const int64_t tiles =
          ceil_div(p.m, tile.block_m) * ceil_div(p.n, int64_t{kSm90BlockN} * cluster_n);
      if (tiles > INT32_MAX / kSm90MaxCluster) continue;
      const int64_t at_once = clusters_at_once(cluster_n, card);
      for (int cluster_k = 1; cluster_n * cluster_k <= kSm90MaxCluster; ++cluster_k) {
        if (cluster_k > 1 && 2 * cluster_k > steps) break;
        // Blocks that share a tile leave after it; others go on to the next.
        take(estimate(p, i, cluster_n, cluster_k, tiles, card), tile, cluster_n, cluster_k,
             cluster_k > 1 ? tiles : std::min(tiles, at_once));
      }
      if (cluster_n != kStreamedCluster) continue;
      const int64_t streamed = streamed_tiles(tiles, at_once), blocks = at_once * cluster_n;
      const int64_t workspace = sm90_sum_bytes(tile, blocks) + sm90_flag_bytes(blocks);
      if (streamed == 0 || streamed * steps < 2 * at_once || streamed * steps > INT32_MAX ||
          workspace > kMaxWorkspace) {
        continue;
      }
      if (take(estimate_streamed(p, i, tiles, streamed, at_once), tile, cluster_n, 1, at_once)) {
        plan.streamed_tiles = streamed;
        plan.workspace_bytes = workspace;
      }
    }
  }
  return plan;
}

}  // namespace flashint8
