// The kernels for AVX-512 F, BW, DQ, VL; sources.cmake has the flags.
#define FLASHINT8_SIMD_AVX512
#include "kernel_table.h"

namespace flashint8::cpu {

const Kernels& avx512_kernels() {
  static constexpr Kernels kernels = make_kernels("avx512");
  return kernels;
}

}  // namespace flashint8::cpu
