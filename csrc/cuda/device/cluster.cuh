// Thread block clusters (sm_90): blocks of one cluster run at the same time and read each other's
// shared memory. Callers ask for clusters only where the card runs code of 90 or newer; in older
// code these functions are never reached.
#pragma once

#include <cstdint>

namespace flashint8::cuda {

// Every thread of the cluster's blocks arrives; shared-memory writes from before it are visible to
// all of them after it.
__device__ __forceinline__ void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;\n" ::
          : "memory");
#endif
}

// Two floats at shared-memory address `address` of this block, read from block `rank` of the
// cluster.
__device__ __forceinline__ float2 load_cluster_float2(uint32_t address, int rank) {
  float2 v = {0.0f, 0.0f};
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %2, %3;\n"
      "ld.shared::cluster.v2.f32 {%0, %1}, [remote];\n}"
      : "=f"(v.x), "=f"(v.y)
      : "r"(address), "r"(rank)
      : "memory");
#endif
  return v;
}

}  // namespace flashint8::cuda
