// The kernels for any CPU; no instruction-set flags.
#define FLASHINT8_SIMD_PORTABLE
#include "kernel_table.h"

namespace flashint8::cpu {

const Kernels& portable_kernels() {
  static constexpr Kernels kernels = make_kernels("portable");
  return kernels;
}

}  // namespace flashint8::cpu
