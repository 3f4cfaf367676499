// How the work of the Hopper gemm is dealt out to clusters, for the kernel and its launch.
//
// A tile is kSm90BlockN channels x block_m rows. A cluster is cluster_n x cluster_k blocks: those
// along n have neighbouring tiles of channels and share their rows of x; those along k share one
// tile, each with a part of its k. Clusters of one part go round the tiles, cluster_tiles in all;
// others have one tile each.
#pragma once

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
  int k_steps;  // of kSm90BlockK

  FLASHINT8_HOST_DEVICE int first_step(int part) const {
    return static_cast<int>(int64_t{k_steps} * part / cluster_k);
  }
};

inline Sm90Schedule sm90_schedule(const Int8LinearParams& p, int block_m, int cluster_n,
                                  int cluster_k) {
  Sm90Schedule s;
  s.cluster_n = cluster_n;
  s.cluster_k = cluster_k;
  s.tiles_m = static_cast<int>(ceil_div(p.m, block_m));
  s.cluster_tiles =
      s.tiles_m * static_cast<int>(ceil_div(p.n, int64_t{kSm90BlockN} * cluster_n));
  s.k_steps = gemm_k_tiles(p.k, kSm90BlockK);
  return s;
}

}  // namespace flashint8::cuda
