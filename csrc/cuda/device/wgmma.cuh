// Tensor-core products of a warpgroup (wgmma, sm_90a): D[64][kN] += A[64][16] B[kN][16]^T, A from
// registers, B from shared memory, fp32 sums. They run on while the warpgroup goes on: registers of
// A and D may not be touched before wgmma_wait() says so.
//
// With w = warp % 4, g = lane / 4, t = lane % 4 a lane holds, as with mma.cuh,
//   A: a[0] = (16w + g, 2t..), a[1] = (16w + g + 8, 2t..), a[2], a[3] the same at 2t + 8..
//   D: d[4j], d[4j + 1] = (16w + g, 8j + 2t..), d[4j + 2], d[4j + 3] = (16w + g + 8, 8j + 2t..)
// where ".." is the element and the next one.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace flashint8::cuda {

// Before the first product of a group: what registers got before is seen by it.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}

// Waits until at most kPending of the newest groups are still under way.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}

// The compiler moves nothing that touches these registers past this place: it does not know that
// products write theirs until wgmma_wait(), and read theirs from wgmma_fence() on.
template <int kCount>
__device__ __forceinline__ void pin_registers(float (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(x[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void pin_registers(uint32_t (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(x[i])::"memory");
}

// Registers that each thread of the warpgroup keeps from here on, given back to or taken from the
// block's. A kernel starts with as many as its launch bounds leave it.
template <int kRegisters>
__device__ __forceinline__ void give_back_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

// Describes B as the copy engine leaves it with 128-byte swizzle: rows of 64 16-bit values, 128
// bytes each, eight of them in a 1024-byte group; `address` is 1024-byte aligned. 16 further values
// of k are 32 bytes on: 2 more in the descriptor.
__device__ __forceinline__ uint64_t wgmma_matrix(uint32_t address) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kGroupStride = uint64_t{1024 / 16} << 32;
  return kSwizzle128 | kGroupStride | (uint64_t{1} << 16) | ((address & 0x3ffff) >> 4);
}

// `accumulate` false: D is overwritten.
template <typename T, int kN>
struct Wgmma;

// Sixteen of D's registers, as operands.
#define FLASHINT8_SUMS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define FLASHINT8_SUMS_16(i) \
  FLASHINT8_SUMS_4(i), FLASHINT8_SUMS_4(i + 4), FLASHINT8_SUMS_4(i + 8), FLASHINT8_SUMS_4(i + 12)

template <>
struct Wgmma<__half, 64> {
  static __device__ __forceinline__ void multiply(float (&d)[32], const uint32_t (&a)[4],
                                                  uint64_t b, bool accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}\n"
        : FLASHINT8_SUMS_16(0), FLASHINT8_SUMS_16(16)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate}));
  }
};

template <>
struct Wgmma<__nv_bfloat16, 64> {
  static __device__ __forceinline__ void multiply(float (&d)[32], const uint32_t (&a)[4],
                                                  uint64_t b, bool accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}\n"
        : FLASHINT8_SUMS_16(0), FLASHINT8_SUMS_16(16)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate}));
  }
};

template <>
struct Wgmma<__half, 128> {
  static __device__ __forceinline__ void multiply(float (&d)[64], const uint32_t (&a)[4],
                                                  uint64_t b, bool accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, p, 1, 1, 0;\n}\n"
        : FLASHINT8_SUMS_16(0), FLASHINT8_SUMS_16(16), FLASHINT8_SUMS_16(32), FLASHINT8_SUMS_16(48)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate}));
  }
};

template <>
struct Wgmma<__nv_bfloat16, 128> {
  static __device__ __forceinline__ void multiply(float (&d)[64], const uint32_t (&a)[4],
                                                  uint64_t b, bool accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, p, 1, 1, 0;\n}\n"
        : FLASHINT8_SUMS_16(0), FLASHINT8_SUMS_16(16), FLASHINT8_SUMS_16(32), FLASHINT8_SUMS_16(48)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate}));
  }
};

template <>
struct Wgmma<__half, 192> {
  static __device__ __forceinline__ void multiply(float (&d)[96], const uint32_t (&a)[4],
                                                  uint64_t b, bool accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %101, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95}, "
        "{%96, %97, %98, %99}, %100, p, 1, 1, 0;\n}\n"
        : FLASHINT8_SUMS_16(0), FLASHINT8_SUMS_16(16), FLASHINT8_SUMS_16(32), FLASHINT8_SUMS_16(48),
          FLASHINT8_SUMS_16(64), FLASHINT8_SUMS_16(80)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate}));
  }
};

template <>
struct Wgmma<__nv_bfloat16, 192> {
  static __device__ __forceinline__ void multiply(float (&d)[96], const uint32_t (&a)[4],
                                                  uint64_t b, bool accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %101, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95}, "
        "{%96, %97, %98, %99}, %100, p, 1, 1, 0;\n}\n"
        : FLASHINT8_SUMS_16(0), FLASHINT8_SUMS_16(16), FLASHINT8_SUMS_16(32), FLASHINT8_SUMS_16(48),
          FLASHINT8_SUMS_16(64), FLASHINT8_SUMS_16(80)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate}));
  }
};

template <>
struct Wgmma<__half, 256> {
  static __device__ __forceinline__ void multiply(float (&d)[128], const uint32_t (&a)[4],
                                                  uint64_t b, bool accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "
        "%111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "
        "%127}, "
        "{%128, %129, %130, %131}, %132, p, 1, 1, 0;\n}\n"
        : FLASHINT8_SUMS_16(0), FLASHINT8_SUMS_16(16), FLASHINT8_SUMS_16(32), FLASHINT8_SUMS_16(48),
          FLASHINT8_SUMS_16(64), FLASHINT8_SUMS_16(80), FLASHINT8_SUMS_16(96),
          FLASHINT8_SUMS_16(112)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate}));
  }
};

template <>
struct Wgmma<__nv_bfloat16, 256> {
  static __device__ __forceinline__ void multiply(float (&d)[128], const uint32_t (&a)[4],
                                                  uint64_t b, bool accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "
        "%111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "
        "%127}, "
        "{%128, %129, %130, %131}, %132, p, 1, 1, 0;\n}\n"
        : FLASHINT8_SUMS_16(0), FLASHINT8_SUMS_16(16), FLASHINT8_SUMS_16(32), FLASHINT8_SUMS_16(48),
          FLASHINT8_SUMS_16(64), FLASHINT8_SUMS_16(80), FLASHINT8_SUMS_16(96),
          FLASHINT8_SUMS_16(112)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate}));
  }
};

#undef FLASHINT8_SUMS_16
#undef FLASHINT8_SUMS_4

}  // namespace flashint8::cuda
