// Fragments for mma from shared memory (sm_75). Lanes 8i..8i+7 give the row addresses of matrix i
// (8 rows of 16 bytes); lane l receives, of each matrix, row l / 4, elements 2 (l % 4) and the
// next.
#pragma once

#include <cstdint>

namespace flashint8::cuda {

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// Transposed: lane l receives column l / 4, rows 2 (l % 4) and the next. For a B operand whose
// rows run along k.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

}  // namespace flashint8::cuda
