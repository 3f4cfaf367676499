// Programmatic dependent launch (sm_90): a kernel launched with the attribute
// programmaticStreamSerialization may start before the one ahead of it in the stream ends, so that
// its launch, its index arithmetic and its first trip to memory cost no time of their own. Nothing
// on older cards.
#pragma once

#include <cstdint>

namespace flashint8::cuda {

// Everything that kernels ahead in the stream wrote is visible after this. Before it nothing that
// they may write is read, and nothing that they may touch is written.
__device__ __forceinline__ void wait_for_prerequisite() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

// The kernel behind this one may be brought onto the chip from now on; it waits there itself.
__device__ __forceinline__ void allow_dependent_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

// Asks for the line of `address` to be brought into L2. No value is read, so that it may come
// before wait_for_prerequisite() even where another kernel is writing there: L2 is where all
// multiprocessors meet.
__device__ __forceinline__ void prefetch_l2_line(const void* address) {
#if __CUDA_ARCH__ >= 900
  asm volatile("prefetch.global.L2 [%0];\n" ::"l"(address));
#endif
}

}  // namespace flashint8::cuda
