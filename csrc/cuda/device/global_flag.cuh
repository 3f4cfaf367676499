// Flags in global memory by which blocks of one grid wait for each other's results, without anyone
// having cleared them: a raised flag holds a number that is drawn for the launch and that no memory
// holds by chance. Each flag that is raised must be taken once before the grid ends: a graph brings
// the same launch, with the same number and memory, again.
#pragma once

#include <cstdint>

namespace flashint8::cuda {

// What this thread wrote, and what it has seen the others of its warp write (__syncwarp), is
// visible to whoever finds the flag raised.
__device__ __forceinline__ void raise_flag(uint64_t* flag, uint64_t raised) {
  asm volatile("st.release.gpu.global.u64 [%0], %1;\n" ::"l"(flag), "l"(raised) : "memory");
}

// Waits until the flag is raised, and lowers it.
__device__ __forceinline__ void take_flag(uint64_t* flag, uint64_t raised) {
  uint64_t value;
  do {
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];\n" : "=l"(value) : "l"(flag) : "memory");
  } while (value != raised);
  *flag = 0;
}

}  // namespace flashint8::cuda
