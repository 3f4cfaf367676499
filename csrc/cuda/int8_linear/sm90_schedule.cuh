// How the work of the Hopper gemm is dealt out to clusters, for the kernel and its launch.
//
// A tile is kSm90BlockN channels x block_m rows. A cluster is cluster_n x cluster_k blocks: those
// along n have neighbouring tiles of channels and share their rows of x; those along k share one
// tile, each with a part of its k, and leave after it. Clusters of one part go round the tiles.
//
// Streamed tiles: where the tiles do not come out even, the steps of the last ones to be done are
// dealt out over all clusters in runs of equal length (stream-K). A tile that lies in several runs
// is that of the cluster with its first k, which comes to it last in its run; the others leave
// their sums in the workspace, and come to it first in theirs.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "flashint8/int8_linear.h"
#include "flashint8/plan.h"
#include "variants.h"

namespace flashint8::cuda {

struct Sm90Schedule {
  int cluster_n;  // a power of two
  int log2_cluster_n;
  int cluster_k;
  int tiles_m;
  int cluster_tiles;
  int streamed_tiles;
  int box_rows;         // of x that a block brings, for the blocks along n
  int tile_steps;       // of block_k, in a tile
  int steps_per_share;  // of a part's steps, or of a cluster's in the streamed tiles: the first
  int longer_shares;    // `longer_shares` have one more
  uint64_t raised;      // what a raised flag of the workspace holds, in this launch

  FLASHINT8_HOST_DEVICE int first_of_share(int share) const {
    return share * steps_per_share + (share < longer_shares ? share : longer_shares);
  }
  // The first row of a tile; all tiles of rows of some channels come before the next channels'.
  FLASHINT8_HOST_DEVICE int row_of(int tile, int block_m) const { return tile % tiles_m * block_m; }
};

// All but `raised`.
inline Sm90Schedule sm90_schedule(const Int8LinearParams& p, const Sm90Tile& tile,
                                  const LinearPlan& plan) {
  Sm90Schedule s{};
  s.cluster_n = plan.cluster;
  s.log2_cluster_n = std::countr_zero(static_cast<unsigned>(plan.cluster));
  s.cluster_k = plan.num_splits;
  s.tiles_m = static_cast<int>(ceil_div(p.m, tile.block_m));
  s.cluster_tiles = s.tiles_m * static_cast<int>(ceil_div(p.n, int64_t{kSm90BlockN} * s.cluster_n));
  s.streamed_tiles = static_cast<int>(plan.streamed_tiles);
  // Fewer than a tile's where x has fewer: boxes mostly outside of a matrix are slow. What stands
  // in the other rows is multiplied, and not stored.
  s.box_rows = static_cast<int>(
      std::min<int64_t>(tile.block_m / s.cluster_n, ceil_div(p.m, int64_t{8} * s.cluster_n) * 8));
  s.tile_steps = gemm_k_tiles(p.k, tile.block_k);
  const int clusters = static_cast<int>(plan.num_blocks) / s.cluster_n;
  const int shares = s.streamed_tiles > 0 ? clusters : s.cluster_k;
  const int steps = s.streamed_tiles > 0 ? s.streamed_tiles * s.tile_steps : s.tile_steps;
  s.steps_per_share = steps / shares;
  s.longer_shares = steps % shares;
  return s;
}

#ifdef __CUDACC__
// Consecutive steps of a tile; none: there is nothing more to do.
struct Sm90Piece {
  int tile;
  int first_step;
  int num_steps;
};

// This block's place: along n and along k in its cluster, and the cluster's among all. The special
// registers that say the same are made by divisions.
struct Sm90Place {
  int rank;
  int part;
  int cluster;
  int num_clusters;

  // The cluster, counted from the last to the first, so that those that are waited for are those
  // that were started earlier.
  __device__ __forceinline__ int worker() const { return num_clusters - 1 - cluster; }
};

__device__ __forceinline__ Sm90Place sm90_place(const Sm90Schedule& schedule) {
  const int shift = schedule.log2_cluster_n;
  const auto x = static_cast<int>(blockIdx.x), size = static_cast<int>(gridDim.x);
  return {x & schedule.cluster_n - 1, static_cast<int>(blockIdx.y), x >> shift, size >> shift};
}

// This block's first channel of a tile. It looks for its place again: a register less in the
// products.
__device__ __forceinline__ int sm90_channel(const Sm90Schedule& schedule, int tile) {
  const int rank = sm90_place(schedule).rank;
  return (tile / schedule.tiles_m * schedule.cluster_n + rank) * kSm90BlockN;
}

// From step `step` of all streamed tiles to the end of its tile or of the worker's run.
__device__ __forceinline__ Sm90Piece sm90_streamed_piece(const Sm90Schedule& schedule, int step) {
  const int end = schedule.first_of_share(sm90_place(schedule).worker() + 1);
  const int tile = step / schedule.tile_steps, first = step - tile * schedule.tile_steps;
  return {tile, first, max(0, min(schedule.tile_steps - first, end - step))};
}

// A block's first piece, and that behind another: whole tiles, then, of the streamed ones, the end
// of one that others begin before the beginning of one that others end.
__device__ __forceinline__ Sm90Piece sm90_first_piece(const Sm90Schedule& schedule) {
  const Sm90Place place = sm90_place(schedule);
  const int worker = place.worker();
  if (schedule.cluster_k > 1) {
    const int first = schedule.first_of_share(place.part);
    return {worker, first, schedule.first_of_share(place.part + 1) - first};
  }
  const int whole = schedule.streamed_tiles + worker;
  if (whole < schedule.cluster_tiles) return {whole, 0, schedule.tile_steps};
  return sm90_streamed_piece(schedule, schedule.first_of_share(worker));
}

__device__ __forceinline__ Sm90Piece sm90_next_piece(const Sm90Schedule& schedule,
                                                     const Sm90Piece& piece) {
  if (schedule.cluster_k > 1) return {};
  if (piece.tile < schedule.streamed_tiles) {
    return sm90_streamed_piece(schedule, (piece.tile + 1) * schedule.tile_steps);
  }
  const Sm90Place place = sm90_place(schedule);
  const int whole = piece.tile + place.num_clusters;
  if (whole < schedule.cluster_tiles) return {whole, 0, schedule.tile_steps};
  if (schedule.streamed_tiles == 0) return {};
  return sm90_streamed_piece(schedule, schedule.first_of_share(place.worker()));
}
#endif

}  // namespace flashint8::cuda
