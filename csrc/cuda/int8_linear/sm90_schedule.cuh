// How the work of the Hopper gemm is dealt out to clusters, for the kernel and its launch.
//
// A tile is kSm90BlockN channels x block_m rows. A cluster is cluster_n x cluster_k blocks: those
// along n have neighbouring tiles of channels and share their rows of x; those along k share one
// tile, each with a part of its k. Clusters of one part go round the tiles, cluster_tiles in all;
// others have one tile each.
#pragma once

#include <algorithm>
#include <cstdint>

#include "flashint8/int8_linear.h"
#include "flashint8/plan.h"
#include "variants.h"

namespace flashint8::cuda {

struct Sm90Schedule {
  int cluster_n;
  int cluster_k;
  int tiles_m;
  int cluster_tiles;
  int box_rows;        // of x that a block brings, for the blocks along n
  int steps_per_part;  // of block_k; the first `longer_parts` parts have one more
  int longer_parts;

  FLASHINT8_HOST_DEVICE int first_step(int part) const {
    return part * steps_per_part + (part < longer_parts ? part : longer_parts);
  }
};

inline Sm90Schedule sm90_schedule(const Int8LinearParams& p, const Sm90Tile& tile, int cluster_n,
                                  int cluster_k) {
  Sm90Schedule s;
  s.cluster_n = cluster_n;
  s.cluster_k = cluster_k;
  s.tiles_m = static_cast<int>(ceil_div(p.m, tile.block_m));
  s.cluster_tiles = s.tiles_m * static_cast<int>(ceil_div(p.n, int64_t{kSm90BlockN} * cluster_n));
  // Fewer than a tile's where x has fewer: boxes mostly outside of a matrix are slow. What stands
  // in the other rows is multiplied, and not stored.
  s.box_rows = static_cast<int>(
      std::min<int64_t>(tile.block_m / cluster_n, ceil_div(p.m, int64_t{8} * cluster_n) * 8));
  const int k_steps = gemm_k_tiles(p.k, tile.block_k);
  s.steps_per_part = k_steps / cluster_k;
  s.longer_parts = k_steps % cluster_k;
  return s;
}

}  // namespace flashint8::cuda
