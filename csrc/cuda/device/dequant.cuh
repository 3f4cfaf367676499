// INT8 weights to packed 16-bit values in registers, exactly.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace flashint8::cuda {

__device__ __forceinline__ uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}

// dequantize(word, lo, hi): the 4 int8 of `word`, in memory order, as two packed pairs:
// lo = {byte 0, byte 1}, hi = {byte 2, byte 3}. pair(word): the first of them alone.
// dequantize_shortly: the same, for fp16 in fewer instructions, some of two source registers. Every
// int8 is exact in both 16-bit types.
template <typename T>
struct Int8To16;

template <>
struct Int8To16<__half> {
  // An fp16 in [1024, 2048) has ulp 1, so 0x6400 | u is 1024 + u for an unsigned byte u. Flipping
  // the sign bit makes u = w + 128; subtracting 1152 leaves w, with no rounding on the way. Every
  // instruction reads a single register: beside mma.sync, which needs nearly all of the register
  // file's ports, one that reads two takes the place of products (docs/performance.md).
  static __device__ __forceinline__ void dequantize(uint32_t word, uint32_t& lo, uint32_t& hi) {
    lo = pair(word);
    hi = sub(byte_permute(word, 0, 0x4342) ^ kMagic, kBias);
  }
  static __device__ __forceinline__ void dequantize_shortly(uint32_t word, uint32_t& lo,
                                                            uint32_t& hi) {
    const uint32_t flipped = word ^ 0x80808080;
    lo = sub(byte_permute(flipped, 0x64646464, 0x4140), kBias);
    hi = sub(byte_permute(flipped, 0x64646464, 0x4342), kBias);
  }
  static __device__ __forceinline__ uint32_t pair(uint32_t word) {
    return sub(byte_permute(word, 0, 0x4140) ^ kMagic, kBias);
  }

 private:
  static constexpr uint32_t kMagic = 0x64806480;  // {1024 ^ sign bit}, twice
  static constexpr uint32_t kBias = 0x64806480;   // {1152}, twice

  static __device__ __forceinline__ uint32_t sub(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("sub.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
  }
};

template <>
struct Int8To16<__nv_bfloat16> {
  // A bf16 in [128, 256) has ulp 1 but only 7 bits: 0x4300 | (w & 0x7f) is 128 + the low 7 bits.
  // The sign bit lands on the exponent's last bit: 0xc300 | (w & 0x80) is -128 for w >= 0 and
  // -256 for w < 0. Their sum is w.
  static __device__ __forceinline__ void dequantize(uint32_t word, uint32_t& lo, uint32_t& hi) {
    lo = pair(word);
    hi = low_plus_sign(byte_permute(word, kMagic, 0x4342));
  }
  static __device__ __forceinline__ void dequantize_shortly(uint32_t word, uint32_t& lo,
                                                            uint32_t& hi) {
    dequantize(word, lo, hi);
  }
  static __device__ __forceinline__ uint32_t pair(uint32_t word) {
    return low_plus_sign(byte_permute(word, kMagic, 0x4140));
  }

 private:
  static constexpr uint32_t kMagic = 0x43434343;

  static __device__ __forceinline__ uint32_t low_plus_sign(uint32_t pair) {
    const uint32_t low = pair & 0xff7fff7fu;
    const uint32_t sign = (pair & 0x00800080u) | 0xc300c300u;
    uint32_t d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(low), "r"(0x3f803f80u), "r"(sign));
    return d;
  }
};

}  // namespace flashint8::cuda
