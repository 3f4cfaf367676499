// Programmatic dependent launch (sm_90): the next kernel of a stream, launched with the attribute
// programmaticStreamSerialization, may start before this one ends. Nothing on older cards.
#pragma once

namespace flashint8::cuda {

// In the first kernel: the next one may be brought onto the chip from now on.
__device__ __forceinline__ void allow_dependent_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

// In the second: everything the first wrote is visible after this.
__device__ __forceinline__ void wait_for_prerequisite() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

}  // namespace flashint8::cuda
