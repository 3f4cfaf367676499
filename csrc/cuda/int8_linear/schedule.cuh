// How the gemm's work is dealt out, for the kernel, the sum over splits and their launch.
//
// A unit is one k tile of one output tile; units are numbered k first, then tile by tile. Block b
// takes a contiguous run of them, all runs of equal length within one, whatever the number of tiles
// (stream-K). A tile that lies in several runs is split: each of its blocks writes fp32 sums to a
// slot of the workspace, and split_sum.cu adds them in the order of k.
#pragma once

#include <cstdint>

#include "flashint8/int8_linear.h"
#include "variants.h"

namespace flashint8::cuda {

struct GemmSchedule {
  int64_t units_per_block;  // the first `longer_blocks` blocks take one more
  int num_blocks;
  int longer_blocks;
  int tiles_m;
  int tiles_n;
  int k_tiles;

  FLASHINT8_HOST_DEVICE int64_t first_unit(int block) const {
    return block * units_per_block + (block < longer_blocks ? block : longer_blocks);
  }
  FLASHINT8_HOST_DEVICE int block_of(int64_t unit) const {
    const int64_t in_longer = longer_blocks * (units_per_block + 1);
    return static_cast<int>(unit < in_longer
                                ? unit / (units_per_block + 1)
                                : longer_blocks + (unit - in_longer) / units_per_block);
  }
  // Of the part of a tile that a block has; `begins`: the one with the tile's first k. Each block
  // has at most two parts, and with fewer tiles than blocks each next part is the next block's or
  // the next tile's.
  FLASHINT8_HOST_DEVICE int slot(int block, int tile, bool begins) const {
    return block + (tiles_m * tiles_n < num_blocks ? tile : block + begins);
  }
};

inline GemmSchedule gemm_schedule(const Int8LinearParams& p, int block_m, int block_n, int block_k,
                                  int64_t num_blocks) {
  GemmSchedule s;
  s.tiles_m = static_cast<int>(ceil_div(p.m, block_m));
  s.tiles_n = static_cast<int>(ceil_div(p.n, block_n));
  s.k_tiles = gemm_k_tiles(p.k, block_k);
  const int64_t units = int64_t{s.tiles_m} * s.tiles_n * s.k_tiles;
  s.units_per_block = units / num_blocks;
  s.num_blocks = static_cast<int>(num_blocks);
  s.longer_blocks = static_cast<int>(units % num_blocks);
  return s;
}

#ifdef __CUDACC__
// Tiles in groups of kGroupM rows of tiles, so that the blocks that run together share weights and
// x in L2.
__device__ __forceinline__ void locate_tile(const GemmSchedule& schedule, int index, int& tile_m,
                                            int& tile_n) {
  constexpr int kGroupM = 8;
  const int tiles_m = schedule.tiles_m, tiles_n = schedule.tiles_n;
  if (tiles_m == 1) {
    tile_m = 0;
    tile_n = index;
    return;
  }
  // A group has at most all tiles, of which there are less than 2^31; no product overflows.
  const int64_t group_tiles = int64_t{kGroupM} * tiles_n;
  const int first = group_tiles > index ? 0 : index / static_cast<int>(group_tiles) * kGroupM;
  const int size = min(tiles_m - first, kGroupM);
  const int within = index - first * tiles_n;
  tile_n = within / size;
  tile_m = first + within - tile_n * size;
}

// Where a fragment of 16 channels x 8 rows of a slot lies in the workspace, in float4: a lane's
// four sums are adjacent, so that a warp writes and reads 512 contiguous bytes.
__device__ __forceinline__ int64_t fragment_index(int64_t slot, int fragments_per_tile,
                                                  int fragment, int lane) {
  return (slot * fragments_per_tile + fragment) * 32 + lane;
}
#endif

}  // namespace flashint8::cuda
