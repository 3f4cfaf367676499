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
  int warps_k;  // groups of warps that split every k tile
  int stages;
};

constexpr GemvTile kGemvTiles[] = {
    {8, 16, 2, true}, {8, 8, 4, true}, {16, 8, 3, true}, {32, 8, 2, true}, {32, 8, 1, false},
};
constexpr int kNumGemvTiles = sizeof(kGemvTiles) / sizeof(kGemvTiles[0]);
constexpr int kGemvBlockN = 16;
constexpr int kGemvUnit = 128;  // k of a warp's step

constexpr GemmTile kGemmTiles[] = {
    {32, 64, 1, 2, 4, 3},
    {32, 128, 1, 2, 2, 4},
    {64, 64, 1, 2, 2, 4},
    {128, 128, 2, 2, 1, 4},
};
constexpr int kNumGemmTiles = sizeof(kGemmTiles) / sizeof(kGemmTiles[0]);

constexpr int kLinearChunkK = 64;  // the gemm: the k that a lane quad's 4 x 16 weight bytes cover

FLASHINT8_HOST_DEVICE constexpr int gemm_warps(const GemmTile& tile) {
  return tile.warps_m * tile.warps_n * tile.warps_k;
}
FLASHINT8_HOST_DEVICE constexpr int gemm_block_k(const GemmTile& tile) {
  return kLinearChunkK * tile.warps_k;
}

FLASHINT8_HOST_DEVICE constexpr int gemm_stage_bytes(const GemmTile& tile) {
  return gemm_block_k(tile) * (tile.block_n + 2 * tile.block_m);
}

// Scale and bias of the block's channels (fp32) come first.
FLASHINT8_HOST_DEVICE constexpr int gemm_epilogue_bytes(const GemmTile& tile) {
  return 2 * 4 * tile.block_n;
}

FLASHINT8_HOST_DEVICE constexpr int gemm_shared_bytes(const GemmTile& tile) {
  return gemm_epilogue_bytes(tile) + tile.stages * gemm_stage_bytes(tile);
}

}  // namespace flashint8
