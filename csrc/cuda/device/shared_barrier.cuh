// Barriers in shared memory on which copies complete (mbarrier, sm_90), and what blocks of one
// cluster say to each other.
#pragma once

#include <cstdint>

namespace flashint8::cuda {

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals));
}

// Makes initialised barriers known to the copy engine and to the cluster's other blocks (once these
// have met at cluster_meet()).
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}

// Arrives, and announces `bytes` that copies will bring: the phase ends when both are complete.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Arrives: this thread has read what it had to.
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

// Arrives, if it is to, at the same barrier of block `rank` of the cluster, one's own included. It
// says that this thread has read what it had to; nothing that it wrote is published (that would
// cost a fence of the whole GPU's memory). Predicated: around a branch the warp would diverge and
// meet.
__device__ __forceinline__ void barrier_arrive_in_if(bool arrives, uint32_t barrier,
                                                     uint32_t rank) {
  asm volatile(
      "{\n.reg .b32 there;\n.reg .pred arrives;\n"
      "setp.ne.b32 arrives, %2, 0;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "@arrives mbarrier.arrive.shared::cluster.b64 _, [there];\n}\n" ::"r"(barrier),
      "r"(rank), "r"(static_cast<int>(arrives))
      : "memory");
}

// Waits for the end of the phase of this parity; what the copies that count on it wrote is visible
// then.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Where in a ring: the place, and the parity of its barriers' phase.
template <int kPlaces>
struct RingPlace {
  int index = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++index == kPlaces) {
      index = 0;
      parity ^= 1;
    }
  }
};

// All threads of all blocks of the cluster meet; their writes to shared memory are visible to all.
__device__ __forceinline__ void cluster_sync() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;\n" ::
          : "memory");
}

// They meet, and publish nothing.
__device__ __forceinline__ void cluster_meet() {
  asm volatile(
      "barrier.cluster.arrive.relaxed.aligned;\n"
      "barrier.cluster.wait.aligned;\n" ::
          : "memory");
}

// 16 bytes at `address` in the shared memory of block `rank` of the cluster.
__device__ __forceinline__ float4 load_cluster_16(uint32_t address, uint32_t rank) {
  float4 v;
  asm volatile(
      "{\n.reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];\n}\n"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(address), "r"(rank)
      : "memory");
  return v;
}

// What this thread wrote to shared memory is seen by copies and products that others start after
// they have heard of it.
__device__ __forceinline__ void shared_writes_fence() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// Warpgroups take turns: `turn` stands for one of the block's named barriers, on which a warpgroup
// waits until another one passes it on.
__device__ __forceinline__ void take_turn(int turn) {
  asm volatile("bar.sync %0, 256;\n" ::"r"(turn) : "memory");
}
__device__ __forceinline__ void pass_turn(int turn) {
  asm volatile("bar.arrive %0, 256;\n" ::"r"(turn) : "memory");
}

// The 128 threads of warpgroup `group`, 0 or 1, meet.
__device__ __forceinline__ void warpgroup_sync(int group) {
  if (group == 0) {
    asm volatile("bar.sync 2, 128;\n" ::: "memory");
  } else {
    asm volatile("bar.sync 3, 128;\n" ::: "memory");
  }
}

// The 256 threads of two warpgroups meet.
__device__ __forceinline__ void warpgroups_sync() {
  asm volatile("bar.sync 1, 256;\n" ::: "memory");
}

}  // namespace flashint8::cuda
