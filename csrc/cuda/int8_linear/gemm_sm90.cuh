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
// other registers, a chunk after each chunk of products: a warp is held while it hands products to
// the tensor cores, and both take about as long. Few rows leave registers for steps of 128 k, whose
// meetings cost half as much.
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
  constexpr int kChunk = kBlockM < 128 ? 256 / kBlockM : 2, kChunks = kProducts / kChunk;
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
  if (warp == kSm90Warps + 1 && lane < kSm90BlockN / kScalesOfLine) {
    const int channel = sm90_channel(schedule, first.tile) + lane * kScalesOfLine;
    if (channel < p.n) prefetch_channels<T>(p, channel);
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
    uint32_t weights[2][kProducts][4];  // of this step and the next,
    uint32_t bytes[2][kChunk][4];       // and of two chunks as they are read
    float sum[4 * kFragments];
    // A chunk of a step's weights; the step's products are `first` and up of its slot's.
    const auto read_weights = [&](int slot_index, int first, int chunk) {
      const uint32_t address = read_w + slot_index * Ring::kBytesW;
#pragma unroll
      for (int s = 0; s < kChunk; ++s) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          bytes[chunk % 2][s][i] = load_shared_2((address ^ 16 * (first + chunk * kChunk + s)) +
                                                 i % 2 * (8 * kSm90SlotK) + i / 2 * 8);
        }
      }
    };
    const auto convert_weights = [&](int chunk, uint32_t (&a)[kProducts][4]) {
#pragma unroll
      for (int s = 0; s < kChunk; ++s) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          a[chunk * kChunk + s][i] = Int8To16<T>::pair(bytes[chunk % 2][s][i]);
        }
      }
    };
    // Hands a chunk of products to the tensor cores. x: of a step, wgmma_matrix.
    const auto multiply = [&](int chunk, uint64_t x, uint32_t (&a)[kProducts][4], bool accumulate) {
      wgmma_fence();
#pragma unroll
      for (int s = chunk * kChunk; s < (chunk + 1) * kChunk; ++s) {
        Wgmma<T, kBlockM>::multiply(
            sum, a[s], wgmma_advance(x, s / 4 * Ring::kBoxBytes + s % 4 * 32), accumulate || s > 0);
      }
      wgmma_commit();
    };
    // The slot is not read any more. A barrier does not wait for loads that are still under way:
    // what they bring must have been used.
    const auto release_weights = [&]() {
      if (lane == 0) barrier_arrive(ring.empty_weights(slot.index));
      slot.advance();
    };
    // The stage before this one is not read any more.
    const auto release_last_x = [&]() {
      const int last = stage.index == 0 ? kStages - 1 : stage.index - 1;
      const int rank = min(lane, schedule.cluster_n - 1);
      barrier_arrive_in_if(lane < schedule.cluster_n, ring.empty(last),
                           part * schedule.cluster_n + rank);
    };
    // This stage's x, once it is there. All lanes have the same index; that the compiler knows it
    // saves two moves of every product's descriptor between one product and the next.
    const auto wait_for_x = [&]() {
      const uint64_t x = wgmma_matrix(ring.x(__shfl_sync(~0u, stage.index, 0)));
      barrier_wait(ring.full(stage.index), stage.parity);
      return x;
    };
    for (Sm90Piece piece = sm90_first_piece(schedule); piece.num_steps > 0;
         piece = sm90_next_piece(schedule, piece)) {
      // A step but the last: multiplies `now`, of this half of a slot, and meanwhile makes the next
      // step's weights ready.
      const auto step = [&](int i, int half, uint32_t (&now)[kProducts][4],
                            uint32_t (&next)[kProducts][4]) {
        const bool leaves_slot = half == kStepsPerSlot - 1;
        const int first = leaves_slot ? 0 : kProducts;  // of the next step's products, in its slot
        RingPlace<Ring::kSlots> next_slot = slot;
        if (leaves_slot) next_slot.advance();
        const uint64_t x = wait_for_x();
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          multiply(c, x, now, i > 0);
          if (c > 0) {
            convert_weights(c - 1, next);
            if (c + 1 < kChunks) read_weights(next_slot.index, first, c + 1);
            continue;
          }
          wgmma_wait<1>();  // the last step's products are done, and `next` is not read any more
          if (i > 0) release_last_x();
          if (leaves_slot) {
            release_weights();
            barrier_wait(ring.full_weights(next_slot.index), next_slot.parity);
          }
          read_weights(next_slot.index, first, 0);
          if (kChunks > 1) read_weights(next_slot.index, first, 1);
        }
        convert_weights(kChunks - 1, next);
        stage.advance();
      };
      const auto last_step = [&](int i, uint32_t (&now)[kProducts][4]) {
        const uint64_t x = wait_for_x();
        release_weights();
#pragma unroll
        for (int c = 0; c < kChunks; ++c) multiply(c, x, now, i > 0);
        wgmma_wait<kChunks>();
        if (i > 0) release_last_x();
        stage.advance();
      };
      barrier_wait(ring.full_weights(slot.index), slot.parity);
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        read_weights(slot.index, 0, c);
        convert_weights(c, weights[0]);
      }
      for (int i = 0;; i += 2) {
        if (i + 1 == piece.num_steps) {
          last_step(i, weights[0]);
          break;
        }
        step(i, 0, weights[0], weights[1]);
        if (i + 2 == piece.num_steps) {
          last_step(i + 1, weights[1]);
          break;
        }
        step(i + 1, kStepsPerSlot - 1, weights[1], weights[0]);
      }
      const int64_t channel = sm90_channel(schedule, piece.tile) + warp_channel + read_lane() / 4;
      const ChannelPair channels = load_channels<T>(p, channel);
      wgmma_wait<0>();
      release_last_x();

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
