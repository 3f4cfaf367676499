// Flags in global memory by which blocks of one grid wait for each other's results.
#pragma once

#include <cstdint>

namespace flashint8::cuda {

// What this thread wrote, and what it has seen the others of its warp write (__syncwarp), is
// visible to whoever finds the flag raised.
__device__ __forceinline__ void raise_flag(uint32_t* flag) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;\n" ::"l"(flag), "r"(1) : "memory");
}

// Waits until a flag that begins as 0 is raised.
__device__ __forceinline__ void wait_for_flag(const uint32_t* flag) {
  uint32_t raised;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];\n" : "=r"(raised) : "l"(flag) : "memory");
  } while (raised == 0);
}

}  // namespace flashint8::cuda
