// The kernels for AVX2; compiled with -mavx2 -mfma -mf16c.
#define FLASHINT8_SIMD_AVX2
#include "kernel_table.h"

namespace flashint8::cpu {

const Kernels& avx2_kernels() {
  static constexpr Kernels kernels = make_kernels("avx2");
  return kernels;
}

}  // namespace flashint8::cpu
