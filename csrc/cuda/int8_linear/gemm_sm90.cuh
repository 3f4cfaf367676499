// Many rows of x on Hopper: its warpgroup products (wgmma) and copy engine.
//
// Work: clusters of blocks take tiles of channels x rows (sm90_schedule.cuh). A block has two
// warpgroups that multiply, each 64 channels by all rows of the tile, and one warp that asks the
// copy engine for what they need, as many stages ahead as the ring holds, on into the next tile.
//
// Layout: out^T = W x^T. Channels are the m = 64 side of wgmma, whose operand comes from registers,
// where int8 becomes 16 bits; rows of x are the n side, read from shared memory by the tensor
// cores as they lie. k is in order there, so that of each 16 a lane (g, t) needs the weights 2t,
// 2t + 1 and 2t + 8, 2t + 9 of its two channels: four reads of two bytes. The 128 bytes of k of a
// weight row are swizzled by the copy engine (piece ^ (row & 7)), so that a warp's eight rows meet
// eight different 16 bytes modulo 128.
//
// Time: while the products of one step run, the weights of the next are read and converted into
// other registers. Few rows leave registers for steps of 128 k, whose meetings cost half as much.
// Beside the tensor cores' reads of x (64 bytes a clock) shared memory takes x (32 at most), the
// weights (8 to 16) and these reads (8 to 16).
//
// Blocks of a cluster that share a tile leave their fp32 sums in their own shared memory, and each
// adds all of them, in the order of k, for its part of the rows. Streamed tiles' sums go through
// the workspace (sm90_sums.cuh). Same bits on every run.
#pragma once

#include <cuda_runtime.h>

#include "../device/convert.cuh"
#include "../device/cp_async.cuh"
#include "../device/dependent_launch.cuh"
#include "../device/dequant.cuh"
#include "../device/linear_ptx.cuh"
#include "../device/shared_barrier.cuh"
#include "../device/tensor_copy.cuh"
#include "../device/wgmma.cuh"
#include "epilogue.cuh"
#include "flashint8/plan.h"
#include "sm90_bring.cuh"
#include "sm90_exchange.cuh"
#include "sm90_output.cuh"
#include "sm90_ring.cuh"
#include "sm90_schedule.cuh"
#include "sm90_sums.cuh"
#include "variants.h"

namespace flashint8::cuda {

template <typename T, int kTile>
__global__ void __launch_bounds__(kSm90Threads, 1)
    int8_linear_gemm_sm90_kernel(const __grid_constant__ Int8LinearParams p,
                                 const __grid_constant__ CUtensorMap map_w,
                                 const __grid_constant__ CUtensorMap map_x,
                                 const __grid_constant__ Sm90Schedule schedule) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Ring = Sm90Ring<kTile>;
  constexpr int kBlockM = Ring::kBlockM, kStages = Ring::kStages;
  constexpr int kStepsPerSlot = Ring::kStepsPerSlot;
  constexpr int kFragments = kBlockM / 8;        // of 64 channels x 8 rows, a warpgroup
  constexpr int kProducts = Ring::kBlockK / 16;  // of wgmma, a step
  // Where the next kernel's blocks may come at once, to multiprocessors that have no block of this
  // one or whose block ends first: with few rows, where a launch's start counts.
  constexpr bool kEarly = kBlockM <= 128;

  extern __shared__ __align__(1024) uint8_t shared[];
  const Ring ring{shared_address(shared)};
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int cluster_size = schedule.cluster_n * schedule.cluster_k;
  const Sm90Place place = sm90_place(schedule);
  const int part = place.part;

  if (thread == 0) ring.init(schedule.cluster_n);
  if (warp == kSm90Warps && lane == 31) {
    prefetch_map(&map_w);
    prefetch_map(&map_x);
  }
  const Sm90Piece first = sm90_first_piece(schedule);
  if (warp == kSm90Warps && !p.weight_ready && lane < sm90_first_slots<kTile>(first)) {
    prefetch_box(&map_w, first.first_step * Ring::kBlockK + lane * kSm90SlotK,
                 sm90_channel(schedule, first.tile));
  }
  // The first tile's scales and biases, which are wanted last of all.
  constexpr int kScalesOfLine = 32;
  if (warp == kSm90Warps + 1 && lane < kSm90BlockN / kScalesOfLine) {
    const int channel = sm90_channel(schedule, first.tile) + lane * kScalesOfLine;
    if (channel < p.n) prefetch_l2_line(p.weight_scale + channel);
    if (channel < p.n && p.bias != nullptr) {
      prefetch_l2_line(static_cast<const T*>(p.bias) + channel);
    }
  }
  if (cluster_size > 1) {
    cluster_meet();
  } else {
    __syncthreads();
  }
  if (warp == kSm90Warps && lane == 0 && p.weight_ready) {
    bring_first_weights(ring, schedule, first, map_w);
  }
  __syncwarp();
  if constexpr (kEarly) allow_dependent_launch();
  wait_for_prerequisite();

  if (warp >= kSm90Warps) {
    give_back_registers<40>();
    if (warp == kSm90Warps && lane == 0) {
      bring_pieces(ring, schedule, place, map_w, map_x, p.weight_ready);
    }
    __syncwarp();
    if (schedule.cluster_k > 1) cluster_sync();  // meets the others below
  } else {
    take_registers<232>();
    const int g = lane / 4, t = lane % 4;
    const int group = warp / 4, warp_channel = warp * 16;  // of the block's channels
    // Of a slot's first 16 k: those of the others are at the same address with other bits 4 to 6.
    const uint32_t read_w = ring.weights(0) + (warp_channel + g) * kSm90SlotK + 16 * g + 2 * t;
    RingPlace<kStages> stage;
    RingPlace<Ring::kSlots> slot;
    uint32_t weights[2][kProducts][4];
    float sum[4 * kFragments];
    // A step's weights, of the first or second half of a slot.
    const auto read_weights = [&](int half, uint32_t (&a)[kProducts][4]) {
      if (half == 0) barrier_wait(ring.full_weights(slot.index), slot.parity);
      const uint32_t address = read_w + slot.index * Ring::kBytesW;
#pragma unroll
      for (int s = 0; s < kProducts; ++s) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          a[s][i] = Int8To16<T>::pair(load_shared_2((address ^ 16 * (s + half * kProducts)) +
                                                    i % 2 * (8 * kSm90SlotK) + i / 2 * 8));
        }
      }
    };
    // The slot is not read any more. A barrier does not wait for loads that are still under way:
    // what they bring must have been used.
    const auto release_weights = [&]() {
      if (lane == 0) barrier_arrive(ring.empty_weights(slot.index));
      slot.advance();
    };
    // The stage `back` before the next one is not read any more.
    const auto release_x = [&](int back) {
      const int done = stage.index - back + (stage.index < back ? kStages : 0);
      if (lane < schedule.cluster_n) {
        barrier_arrive_in(ring.empty(done), part * schedule.cluster_n + lane);
      }
    };
    for (Sm90Piece piece = sm90_first_piece(schedule); piece.num_steps > 0;
         piece = sm90_next_piece(schedule, piece)) {
      // One stage: multiplies `now`, of this half of a slot, with it, and meanwhile makes the next
      // stage's weights ready.
      const auto step = [&](int i, int half, uint32_t (&now)[kProducts][4],
                            uint32_t (&next)[kProducts][4]) {
        const uint64_t x = wgmma_matrix(ring.x(stage.index));
        barrier_wait(ring.full(stage.index), stage.parity);
        wgmma_fence();
#pragma unroll
        for (int s = 0; s < kProducts; ++s) {
          Wgmma<T, kBlockM>::multiply(sum, now[s], x + (s / 4 * (Ring::kBoxBytes / 16) + s % 4 * 2),
                                      i > 0 || s > 0);
        }
        wgmma_commit();
        stage.advance();
        wgmma_wait<1>();  // `next` is not read any more
        if (i > 0) release_x(2);
        if (i + 1 == piece.num_steps || half == kStepsPerSlot - 1) release_weights();
        if (i + 1 < piece.num_steps) read_weights((half + 1) % kStepsPerSlot, next);
      };
      read_weights(0, weights[0]);
      for (int i = 0; i < piece.num_steps; i += 2) {
        step(i, 0, weights[0], weights[1]);
        if (i + 1 < piece.num_steps) step(i + 1, kStepsPerSlot - 1, weights[1], weights[0]);
      }
      const int64_t channel = sm90_channel(schedule, piece.tile) + warp_channel + read_lane() / 4;
      const ChannelPair channels = load_channels<T>(p, channel);
      wgmma_wait<0>();
      release_x(1);

      if (!kEarly && sm90_next_piece(schedule, piece).num_steps == 0) allow_dependent_launch();
      if (schedule.cluster_k == 1 && piece.num_steps < schedule.tile_steps) {
        const Sm90Place here = sm90_place(schedule);
        const Sm90Sums<kFragments> sums(p.workspace, schedule.cluster_n * here.num_clusters,
                                        schedule.raised);
        const int worker = here.worker();
        if (piece.first_step > 0) {
          sums.leave(worker * schedule.cluster_n + here.rank, sum);
          continue;
        }
        const int end = (piece.tile + 1) * schedule.tile_steps;
        int sharers = 0;
        while (schedule.first_of_share(worker + 1 + sharers) < end) ++sharers;
        sums.add((worker + 1) * schedule.cluster_n + here.rank, schedule.cluster_n, sharers, sum);
      }
      const Sm90Output<T, kBlockM> output(p, ring.staged(), schedule.row_of(piece.tile, kBlockM),
                                          sm90_channel(schedule, piece.tile), group, warp % 4,
                                          read_lane());
      if (schedule.cluster_k == 1) {
        warpgroup_sync(group);      // the last tile's output has been read
        constexpr int kAtOnce = 4;  // more would need registers beside the sums
        output.template stage<kFragments, kAtOnce>(0, sum, channels);
        warpgroup_sync(group);
        output.write(0, kBlockM);
      } else {
        // The ring is free: this block has no further tile, and all that was on its way has come.
        warpgroups_sync();
        const uint32_t mine = ring.base + thread * 16;
        leave_in_shared<kFragments>(mine, sum);
        cluster_sync();
        const int rank = sm90_place(schedule).rank, pairs = kFragments / 2;
        const int begin = pairs * part / schedule.cluster_k;
        const int end = pairs * (part + 1) / schedule.cluster_k;
#pragma unroll 1
        for (int j = 2 * begin; j < 2 * end; j += 2) {
          float total[8] = {};
          add_in_cluster(mine, j, rank, schedule.cluster_n, schedule.cluster_k, total);
          output.template stage<2, 2>(j, total, channels);
        }
        warpgroup_sync(group);
        output.write(16 * begin, 16 * end);
      }
    }
  }
  // No block leaves while others may still write or arrive in its shared memory, or read it.
  if (cluster_size > 1) cluster_meet();
#endif
}

}  // namespace flashint8::cuda
