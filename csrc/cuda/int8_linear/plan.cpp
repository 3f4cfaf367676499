// Which INT8 linear kernel runs. On Hopper first the gemv built for it, for 9 to 32 rows of x and
// as many channels as fill the chip; then a gemv for few rows or little work, by measured
// thresholds; else on Hopper its own gemm (both: plan_sm90.cpp) from 33 rows on, or 17 with large
// weights; else the portable gemm, of whose tiles and numbers of blocks those that the card rules
// out are dropped and an estimate of the time decides. Earlier candidates win ties.
#include "flashint8/plan.h"

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "plan_sm90.h"
#include "variants.h"

namespace flashint8 {

namespace {

// What a multiprocessor does in a clock, as the estimate below sees it: fitted to measurements on
// an H100, others in proportion of their data sheets. Meant only to rank candidates.
struct Rates {
  double memory_bytes;
  double l2_bytes;
  double mma;  // multiply-adds of mma.sync with fp32 sums
};

Rates rates_of(int compute_capability) {
  switch (compute_capability) {
    case 80: return {23.0, 35.0, 1050.0};
    case 90: return {30.0, 37.0, 1330.0};
    case 86:
    case 89: return {14.0, 28.0, 520.0};
    default:
      return compute_capability >= 100 && compute_capability < 120 ? Rates{37.0, 40.0, 1330.0}
                                                                   : Rates{16.0, 28.0, 520.0};
  }
}

constexpr double kLaunchClocks = 9000;    // a launch, its first loads and its last stores
constexpr double kSplitSumClocks = 1050;  // the second launch, hidden in part
constexpr double kUnitClocks = 120;       // of a k tile, its barrier and copies: of a block alone,
constexpr double kUnitClocksPerBlock = 110;  // and of each that shares the multiprocessor
constexpr double kOverlap = 0.5;             // what is left of needs that are not the longest
constexpr int64_t kLongRow = 2048;           // of weights: several steps for each warp of a gemv
constexpr int kSharedReserved = 1024;        // of each block, by the driver

bool aligned(const void* pointer, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// 16-byte copies from both tensors, at offsets that fit 32 bits in units of 16 bytes; rows,
// channels and k that fit 31.
bool can_vectorize(const Int8LinearParams& p) {
  if (std::max({p.m, p.n, p.k}) > INT32_MAX / 2) return false;
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

// The blocks of a gemv that the card holds.
int64_t blocks_at_once(const GemvTile& tile, const Card& card) {
  return int64_t{gemv_min_blocks(tile, card.compute_capability)} * card.sm_count;
}

// Up to 8 rows: whether blocks of 16 warps read the weights faster than blocks of 8, of which a
// multiprocessor holds twice as many. They hide the latency of rows better, but fill the card in
// larger steps.
bool many_warps(const Int8LinearParams& p, const Card& card, int64_t tiles) {
  constexpr int64_t kOneStep = 8 * kGemvUnit;  // k that 8 warps read at once
  const int64_t at_once = blocks_at_once(kGemvTiles[0], card);
  if (tiles <= at_once) return p.k > kOneStep;
  return p.k >= kLongRow && tiles > 2 * at_once && tiles <= 3 * at_once;
}

// Whether so little is to be done that a gemv of 16 rows a block, in a round or two of blocks,
// beats a gemm of any kind: it is short to start and end. Measured on an H100
// (docs/performance.md), with a block a multiprocessor and more; with fewer, k must be as short as
// if there were.
bool is_little_work(const Int8LinearParams& p, const Card& card, int64_t tiles) {
  const int64_t blocks = tiles * ceil_div(p.m, kGemvTiles[2].block_m);
  const int64_t at_once = blocks_at_once(kGemvTiles[2], card);
  if (blocks > 2 * at_once) return false;
  const int64_t most = blocks > at_once ? 5000 : p.m > 32 ? 7000 : 9000;  // k of an SM's blocks
  return std::max<int64_t>(blocks, card.sm_count) * p.k <= card.sm_count * most;
}

// The row of kGemvTiles for few rows of x, or -1: the gemm is faster, or the gemv cannot, since it
// takes whole pieces of 16 k. Measured on an H100 (docs/performance.md). Of 9 to 16 rows it takes
// middle-sized weights where the card holds a block for each tile, and small ones; 8 rows at a time
// where few blocks read the same weights twice.
int gemv_tile(const Int8LinearParams& p, const Card& card, bool vectorized) {
  constexpr int64_t kMoreRounds = int64_t{12} << 20;  // of weights
  if (!vectorized) return 3;
  if (p.k % 16 != 0) return -1;
  const int64_t tiles = ceil_div(p.n, kGemvBlockN);
  if (p.m <= 8) return many_warps(p, card, tiles) ? 0 : 1;
  if (p.m > 16) return is_little_work(p, card, tiles) ? 2 : -1;
  const bool one_round = tiles <= blocks_at_once(kGemvTiles[2], card);
  if (p.n * p.k > (one_round ? kMostGemvWeights : kMoreRounds)) return -1;
  return tiles <= card.sm_count ? 0 : 2;
}

// What a block asks for so that a multiprocessor holds no more than `blocks` of them: where it has
// room for more, those that come while the kernel ahead still runs would crowd on some.
int64_t shared_bytes_of_few(int blocks, const Card& card) {
  return card.shared_memory_per_block / (blocks + 1) + kSharedReserved;
}

// What a gemv's block asks for beside its sums. A multiprocessor is to hold one less than it has
// room for, where just that is enough. Measured in whole models, among other kernels, and for 16
// rows alone, where it pays only with the chip nearly full.
int64_t gemv_spare_bytes(int64_t blocks, const Card& card, const GemvTile& tile) {
  if (!waits_on_device(card)) return 0;  // no block comes early
  const int one_less = gemv_min_blocks(tile, card.compute_capability) - 1;
  const int64_t room = int64_t{one_less} * card.sm_count;
  const bool full = blocks > room - card.sm_count && (tile.block_m == 8 || 4 * blocks > 3 * room);
  return blocks <= room && full ? shared_bytes_of_few(one_less, card) - gemv_sum_bytes(tile) : 0;
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
  // As many blocks as the chip holds, or fewer, so that each has the same number of tiles; or one
  // for each tile, if it is long enough: multiprocessors that memory serves faster get more then.
  constexpr int64_t kMostBlocks = 65535;  // along y
  const int64_t row_blocks = std::max<int64_t>(1, ceil_div(p.m, tile.block_m));
  // Unaligned, where each block goes round all tiles, it is the tiles alone that count.
  const int64_t counted = tile.vectorized ? tiles * row_blocks : tiles;
  const int64_t rounds = ceil_div(counted, blocks_at_once(tile, card));
  const bool one_each = tile.num_warps == 8 && tile.block_m == 8 && p.k >= kLongRow;
  const int64_t blocks = one_each ? std::min(tiles, kMostBlocks) : ceil_div(tiles, rounds);
  plan.num_blocks = row_blocks * blocks;
  plan.shared_bytes = gemv_spare_bytes(plan.num_blocks, card, tile);
  return plan;
}

// The most blocks that share a tile, when each takes an equal run of the tiles' k tiles.
int splits_of(int64_t tiles, int64_t k_tiles, int64_t blocks) {
  if (tiles % blocks == 0) return 1;
  if (blocks % tiles == 0 && k_tiles % (blocks / tiles) == 0) {
    return static_cast<int>(blocks / tiles);
  }
  const int64_t run = tiles * k_tiles / blocks;
  return static_cast<int>(std::min(k_tiles, ceil_div(k_tiles - 1, run) + 1));
}

Candidate gemm_candidate(const Int8LinearParams& p, const Card& card, const GemmTile& tile,
                         int64_t blocks) {
  Candidate c;
  const int64_t tiles_m = ceil_div(p.m, tile.block_m), tiles_n = ceil_div(p.n, tile.block_n);
  const int64_t tiles = tiles_m * tiles_n, k_tiles = gemm_k_tiles(p.k, gemm_block_k(tile));
  LinearPlan& plan = c.plan;
  plan.kernel = LinearKernel::kGemm;
  plan.block_m = tile.block_m;
  plan.block_n = tile.block_n;
  plan.block_k = gemm_block_k(tile);
  plan.num_warps = gemm_warps(tile);
  plan.stages = tile.stages;
  plan.vectorized = true;
  plan.shared_bytes = gemm_shared_bytes(tile);
  plan.num_splits = splits_of(tiles, k_tiles, blocks);
  plan.num_blocks = blocks;
  if (blocks <= card.sm_count) {
    plan.shared_bytes = std::max(plan.shared_bytes, shared_bytes_of_few(1, card));
  }
  const int64_t slots = plan.num_splits == 1 ? 0 : blocks + std::min(tiles, blocks);
  plan.workspace_bytes = slots * tile.block_m * tile.block_n * 4;

  const Rates rates = rates_of(card.compute_capability);
  const double per_sm = static_cast<double>(ceil_div(blocks, card.sm_count));
  const double units = static_cast<double>(ceil_div(tiles * k_tiles, blocks));
  const double products = per_sm * plan.block_k * tile.block_m * tile.block_n / rates.mma;
  const double m = static_cast<double>(p.m), n = static_cast<double>(p.n);
  const double k = static_cast<double>(p.k), sms = card.sm_count;
  const double weights = n * k, x = 2.0 * m * k;
  const double needs[] = {
      units * (products + kUnitClocks + per_sm * kUnitClocksPerBlock),
      (weights + x + 2.0 * m * n) / (sms * rates.memory_bytes),
      (weights * static_cast<double>(tiles_m) + x * static_cast<double>(tiles_n)) /
          (sms * rates.l2_bytes),
  };
  const double longest = *std::max_element(std::begin(needs), std::end(needs));
  const double all = needs[0] + needs[1] + needs[2];
  c.clocks = kLaunchClocks + longest + kOverlap * (all - longest);
  if (slots > 0) {
    c.clocks +=
        kSplitSumClocks + 2.0 * static_cast<double>(plan.workspace_bytes) / (sms * rates.l2_bytes);
  }
  return c;
}

// Numbers of blocks worth a try: as many as the card holds at once, each with an equal run; or one
// for each tile, where that fills it too. Large blocks with short runs are better off alone on a
// multiprocessor.
template <typename Try>
void try_block_counts(const Int8LinearParams& p, const Card& card, const GemmTile& tile,
                      const Try& try_blocks) {
  constexpr int64_t kShortRun = 8;
  const int64_t tiles = ceil_div(p.m, tile.block_m) * ceil_div(p.n, tile.block_n);
  const int64_t units = tiles * gemm_k_tiles(p.k, gemm_block_k(tile));
  const int64_t fit = (card.shared_memory_per_block + kSharedReserved) /
                      (gemm_shared_bytes(tile) + kSharedReserved);
  const int64_t room = std::min<int64_t>(fit, tile.min_blocks) * card.sm_count;
  if (room == 0) return;
  const bool alone = gemm_warps(tile) >= 8 && units < kShortRun * room;
  try_blocks(std::min(alone ? int64_t{card.sm_count} : room, units));
  if (tile.block_m >= 64 && tiles > card.sm_count && tiles <= room) try_blocks(tiles);
}

LinearPlan gemm_plan(const Int8LinearParams& p, const Card& card) {
  Candidate best;
  bool found = false;
  for (const GemmTile& tile : kGemmTiles) {
    // Tiles of fewer rows read the weights again for the others.
    if (tile.block_m < std::min<int64_t>(p.m, 64)) continue;
    try_block_counts(p, card, tile, [&](int64_t blocks) {
      const Candidate c = gemm_candidate(p, card, tile, blocks);
      if (c.plan.workspace_bytes > kMaxWorkspace || (found && c.clocks >= best.clocks)) return;
      best = c;
      found = true;
    });
  }
  return best.plan;
}

// Where the library's product on converted weights beats the gemm: on data-centre cards from Hopper
// on, whose own matrix instructions are 1.6 times as fast as the mma.sync that the gemm uses, where
// we have no code with these, once x has rows enough to hide the conversion. It knows no
// activation.
bool library_is_faster(const Int8LinearParams& p, const Card& card) {
  constexpr int64_t kManyRows = 512;
  if (card.compute_capability < 90 || card.compute_capability >= 120) return false;
  if (p.m < kManyRows || p.k < 1 || p.activation != Activation::kNone) return false;
  return is_matrix(p);
}

LinearPlan library_plan(const Int8LinearParams& p) {
  LinearPlan plan;
  plan.kernel = LinearKernel::kLibrary;
  plan.num_warps = 8;  // of the conversion
  plan.stages = 1;
  const int64_t fit = std::max<int64_t>(1, kMaxWorkspace / (2 * p.k));
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
  LinearPlan plan;
  if (const int own = gemv_sm90_tile(params, card, vectorized); own >= 0) {
    plan = gemv_sm90_plan(params, own);
  } else if (const int gemv = gemv_tile(params, card, vectorized); gemv >= 0) {
    plan = gemv_plan(params, card, kGemvTiles[gemv]);
  } else if (sm90_can_multiply(params, card, vectorized)) {
    plan = sm90_plan(params, card);
  } else if (library_is_faster(params, card)) {
    plan = library_plan(params);
  } else {
    plan = gemm_plan(params, card);
  }
  plan.dtype = params.dtype;
  plan.dependent_launch = waits_on_device(card) && plan.kernel != LinearKernel::kLibrary;
  return plan;
}

}  // namespace flashint8
