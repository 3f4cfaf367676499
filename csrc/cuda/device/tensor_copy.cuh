// The copy engine (TMA, sm_90): boxes of a matrix that a tensor map describes, to shared memory.
// What lies outside the matrix arrives as zeros. One thread asks for a box.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace flashint8::cuda {

// The box whose first element is (row, column), to `destination`; its bytes count on `barrier`.
__device__ __forceinline__ void copy_box(uint32_t destination, const CUtensorMap* map, int column,
                                         int row, uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4}], [%2], %5;\n" ::"r"(destination),
      "l"(map), "r"(barrier), "r"(column), "r"(row), "l"(policy)
      : "memory");
}

// The same, to the same place in every block of the cluster whose bit is set, with its bytes
// counted on the same barrier of each.
__device__ __forceinline__ void copy_box_to(uint16_t blocks, uint32_t destination,
                                            const CUtensorMap* map, int column, int row,
                                            uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster.L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5, %6;\n" ::"r"(destination),
      "l"(map), "r"(barrier), "r"(column), "r"(row), "h"(blocks), "l"(policy)
      : "memory");
}

// The box of a tensor of four dimensions, the coordinates from the innermost on.
__device__ __forceinline__ void copy_box(uint32_t destination, const CUtensorMap* map, int x0,
                                         int x1, int x2, int x3, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];\n" ::"r"(destination),
      "l"(map), "r"(barrier), "r"(x0), "r"(x1), "r"(x2), "r"(x3)
      : "memory");
}

// The box to L2 only. Reads no value (see dependent_launch.cuh).
__device__ __forceinline__ void prefetch_box(const CUtensorMap* map, int column, int row) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];\n" ::"l"(map),
               "r"(column), "r"(row)
               : "memory");
}

__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
}

}  // namespace flashint8::cuda
