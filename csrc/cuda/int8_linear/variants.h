// The INT8 linear kernels that are built: one table for the plan, the launch and the
// instantiations. Plain C++.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FLASHINT8_HOST_DEVICE __host__ __device__
#else
#define FLASHINT8_HOST_DEVICE
#endif

namespace flashint8 {

// Rows of x, output channels of a block, and the depth of each lane's ring. The number of warps
// (which share the block's k) is free: a launch argument.
struct GemvTile {
  int block_m;
  int block_n;
  int stages;
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
    {8, 16, 5, true},  {8, 32, 4, true},  {16, 32, 3, true},
    {32, 32, 3, true}, {8, 16, 3, false}, {32, 32, 2, false},
};
constexpr int kNumGemvTiles = sizeof(kGemvTiles) / sizeof(kGemvTiles[0]);

constexpr GemmTile kGemmTiles[] = {
    {32, 64, 1, 2, 4, 3},  {32, 128, 1, 2, 2, 4},  {64, 64, 1, 2, 2, 4},
    {64, 128, 1, 2, 2, 3}, {128, 128, 2, 2, 1, 4}, {128, 256, 2, 4, 1, 4},
};
constexpr int kNumGemmTiles = sizeof(kGemmTiles) / sizeof(kGemmTiles[0]);

constexpr int kLinearChunkK = 64;  // the k that a lane quad's 4 x 16 weight bytes cover

// 32 rows need more than the 128 registers a thread of 16 warps may have.
FLASHINT8_HOST_DEVICE constexpr int gemv_max_warps(const GemvTile& tile) {
  return tile.block_m >= 32 ? 8 : 16;
}

// A warp's ring slot: 16 bytes a lane for every 8 weight rows, 32 for every 8 rows of x.
FLASHINT8_HOST_DEVICE constexpr int gemv_slot_bytes(const GemvTile& tile) {
  return 1024 * (tile.block_n / 16 + tile.block_m / 8);
}

// Pitch of a row of partial sums in floats: == 4 (mod 16), see gemv.cuh.
FLASHINT8_HOST_DEVICE constexpr int gemv_sum_pitch(const GemvTile& tile) {
  return tile.block_n + 4;
}

FLASHINT8_HOST_DEVICE constexpr int gemv_shared_bytes(const GemvTile& tile, int num_warps) {
  return num_warps * (tile.stages * gemv_slot_bytes(tile) +
                      tile.block_m * gemv_sum_pitch(tile) * static_cast<int>(sizeof(float)));
}

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

FLASHINT8_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace flashint8
