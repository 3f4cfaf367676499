// Entry points of csrc/cpu. Each picks the instruction set at run time.
#pragma once

#include "flashint8/attention.h"
#include "flashint8/decoder.h"
#include "flashint8/int8_linear.h"

namespace flashint8::cpu {

// "portable", "avx2", "avx512" or "avx512_bf16": the widest this machine runs, or what the
// environment variable FLASHINT8_CPU_ISA names. An unknown name, or one this machine cannot run,
// throws std::invalid_argument on every call (it is read once).
const char* isa_name();
// Comma-separated names of the sets this machine runs, widest last.
const char* isa_supported();

// dtype float32, float16, bfloat16; head_dim 1..256. workspace is not used.
void attention(const AttentionParams& params, const CpuThreads& threads);
// dtype float32, float16, bfloat16; any m, n, k (k = 0 gives the bias). workspace is not used.
void int8_linear(const Int8LinearParams& params, const CpuThreads& threads);
// dtype float32, float16, bfloat16. Returns the first row that holds a NaN or an infinity, or -1.
int64_t quantize_per_channel(const QuantizeParams& params, const CpuThreads& threads);

// dtype float32, float16, bfloat16.
void rope_append(const RopeAppendParams& params, const CpuThreads& threads);
void add_norm(const AddNormParams& params, const CpuThreads& threads);
void silu_mul(const SiluMulParams& params, const CpuThreads& threads);
void embed(const EmbedParams& params, const CpuThreads& threads);
void argmax(const ArgmaxParams& params, const CpuThreads& threads);

}  // namespace flashint8::cpu
