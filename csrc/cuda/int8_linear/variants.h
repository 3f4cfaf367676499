// The INT8 linear kernels that are built: one table for the plan, the launch and the
// instantiations. Plain C++.
#pragma once

#include <cstdint>

#include "flashint8/types.h"

namespace flashint8 {

// Tiles of kGemvBlockN output channels. Any number of rows is taken block_m at a time.
struct GemvTile {
  int block_m;
  int num_warps;
  int min_blocks;  // blocks a multiprocessor is to hold: bounds the registers
  bool vectorized;
};

struct GemmTile {
  int block_m;
  int block_n;
  int warps_m;
  int warps_n;
  int chunks;  // of kGemmChunkK, a stage
  int stages;
  int min_blocks;  // blocks a multiprocessor is to hold: bounds the registers
};

constexpr GemvTile kGemvTiles[] = {
    {8, 16, 2, true},
    {8, 8, 4, true},
    {16, 8, 3, true},
    {32, 8, 1, false},
};
constexpr int kNumGemvTiles = sizeof(kGemvTiles) / sizeof(kGemvTiles[0]);
constexpr int kGemvBlockN = 16;
// On other cards than Hopper the compiler needs more registers for 16 rows than three blocks would
// leave it.
FLASHINT8_HOST_DEVICE constexpr int gemv_min_blocks(const GemvTile& tile, int compute_capability) {
  return tile.block_m == 16 && compute_capability != 90 ? 2 : tile.min_blocks;
}
constexpr int kGemvUnit = 128;               // k of a warp's step
constexpr int kGemvPitch = kGemvBlockN + 4;  // of the sums, in floats

// Of the warps' sums, twice.
FLASHINT8_HOST_DEVICE constexpr int gemv_sum_bytes(const GemvTile& tile) {
  return 2 * tile.num_warps * tile.block_m * kGemvPitch * 4;
}

// Of Hopper's gemv, whose blocks have all of 9 to 32 rows.
struct GemvSm90Tile {
  int block_m;
  int block_n;
  int min_blocks;  // blocks a multiprocessor is to hold: bounds the registers
};

constexpr GemvSm90Tile kGemvSm90Tiles[] = {{16, 32, 2}, {32, 32, 1}, {32, 48, 1}};
constexpr int kNumGemvSm90Tiles = sizeof(kGemvSm90Tiles) / sizeof(kGemvSm90Tiles[0]);
constexpr int kGemvSm90Warps = 8;
constexpr int kGemvSm90Stages = 4;   // of x, for each warp
constexpr int kGemvSm90StageK = 64;  // half a unit

FLASHINT8_HOST_DEVICE constexpr int gemv_sm90_shared_bytes(const GemvSm90Tile& tile) {
  return kGemvSm90Warps * kGemvSm90Stages * tile.block_m * 2 * kGemvSm90StageK;
}

constexpr GemmTile kGemmTiles[] = {
    {16, 64, 1, 4, 4, 3, 3},  {32, 128, 1, 8, 2, 4, 2},  {64, 64, 2, 4, 2, 4, 2},
    {64, 128, 1, 4, 1, 4, 2}, {128, 128, 2, 2, 1, 4, 2},
};
constexpr int kNumGemmTiles = sizeof(kGemmTiles) / sizeof(kGemmTiles[0]);
// Of the Hopper gemm. x comes in stages of block_k, weights in slots of kSm90SlotK: their rows of
// 128 bytes are what the copy engine moves at once. The output is staged behind both.
struct Sm90Tile {
  int block_m;
  int block_k;  // of a step: a whole slot of weights, or half of one
  int stages;
  int slots;
};

// With few rows deeper rings than these were slower, though there is room: a call's first stage
// comes later where more are asked for at once (docs/performance.md).
constexpr Sm90Tile kSm90Tiles[] = {
    {32, 128, 4, 4}, {64, 128, 4, 4}, {128, 128, 4, 4}, {192, 64, 5, 3}, {256, 64, 4, 2}};
constexpr int kNumSm90Tiles = sizeof(kSm90Tiles) / sizeof(kSm90Tiles[0]);
constexpr int kSm90BlockN = 128;
constexpr int kSm90SlotK = 128;
constexpr int kSm90BoxK = 64;  // of x, in a box
constexpr int kSm90Warps = 8;  // that multiply, in two warpgroups; a third one copies
constexpr int kSm90Threads = 32 * (kSm90Warps + 4);
constexpr int kSm90MaxCluster = 8;
constexpr int kSm90SumPitch = 32 * kSm90Warps * 16;  // of a block's fragments of sums, in bytes

FLASHINT8_HOST_DEVICE constexpr int sm90_shared_bytes(const Sm90Tile& tile) {
  const int x = tile.stages * 2 * tile.block_k * tile.block_m;
  const int weights = tile.slots * kSm90SlotK * kSm90BlockN;
  const int barriers = 2 * 8 * (tile.stages + tile.slots);
  return x + weights + 2 * tile.block_m * kSm90BlockN + barriers;
}

// Of the workspace for streamed tiles: a tile of fp32 sums for every block, then its flags.
FLASHINT8_HOST_DEVICE constexpr int64_t sm90_sum_bytes(const Sm90Tile& tile, int64_t blocks) {
  return blocks * 4 * tile.block_m * kSm90BlockN;
}
FLASHINT8_HOST_DEVICE constexpr int64_t sm90_flag_bytes(int64_t blocks) {
  return blocks * 8 * kSm90Warps;
}

constexpr int kGemmChunkK = 64;  // the k that a lane quad's 4 x 16 weight bytes cover

FLASHINT8_HOST_DEVICE constexpr int gemm_warps(const GemmTile& tile) {
  return tile.warps_m * tile.warps_n;
}
FLASHINT8_HOST_DEVICE constexpr int gemm_block_k(const GemmTile& tile) {
  return kGemmChunkK * tile.chunks;
}

FLASHINT8_HOST_DEVICE constexpr int gemm_stage_bytes(const GemmTile& tile) {
  return gemm_block_k(tile) * (tile.block_n + 2 * tile.block_m);
}

// Scale and bias of the block's channels (fp32) and the offsets of its rows of x come first.
FLASHINT8_HOST_DEVICE constexpr int gemm_header_bytes(const GemmTile& tile) {
  return (2 * 4 * tile.block_n + 4 * tile.block_m + 127) / 128 * 128;
}

FLASHINT8_HOST_DEVICE constexpr int gemm_shared_bytes(const GemmTile& tile) {
  return gemm_header_bytes(tile) + tile.stages * gemm_stage_bytes(tile);
}

// At least one, so that a product without k is one of zeros.
FLASHINT8_HOST_DEVICE constexpr int gemm_k_tiles(int64_t k, int block_k) {
  return k <= block_k ? 1 : static_cast<int>(ceil_div(k, block_k));
}

}  // namespace flashint8
