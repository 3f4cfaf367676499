// The vocabulary of the instruction set that the including kernels_*.cpp names.
#pragma once

#if defined(FLASHINT8_SIMD_AVX512)
#include "simd_avx512.h"
#elif defined(FLASHINT8_SIMD_AVX2)
#include "simd_avx2.h"
#elif defined(FLASHINT8_SIMD_PORTABLE)
#include "simd_portable.h"
#else
#error "include this from a kernels_*.cpp, which names an instruction set"
#endif
