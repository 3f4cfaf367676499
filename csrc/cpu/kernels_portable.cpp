// The kernels for any CPU; no instruction-set flags.
#include "simd_portable.h"

#include "kernel_table.h"

namespace flashint8::cpu {

const Kernels& portable_kernels() {
  static constexpr Kernels kernels = make_kernels("portable");
  return kernels;
}

}  // namespace flashint8::cpu
