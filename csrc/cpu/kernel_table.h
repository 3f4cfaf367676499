// Fills the function table of one instruction set. Included last, by each kernels_*.cpp.
#pragma once

#include "attention_decode.h"
#include "attention_prefill.h"
#include "decoder_rows.h"
#include "int8_linear_digit_panel.h"
#include "int8_linear_digits.h"
#include "quantize_rows.h"

namespace flashint8::cpu {
namespace {

// How each input type is multiplied: fp16 and fp32 as fp32, bf16 as bf16 pairs where the CPU can.
template <class T>
struct DotFor {
  using type = FloatDot;
};
#ifdef FLASHINT8_HAS_BF16_DOT
template <>
struct DotFor<BF16> {
  using type = Bf16Dot;
};
#endif

// Calls fn with a value of the element type that `dtype` names.
template <class Fn>
FLASHINT8_INLINE auto with_type(DType dtype, Fn fn) {
  switch (dtype) {
    case DType::kFloat16: return fn(F16{});
    case DType::kBFloat16: return fn(BF16{});
    default: return fn(float{});
  }
}

int64_t prefill_scratch_of(const AttentionParams& p) {
  return with_type(p.dtype, [&](auto x) {
    return PrefillLayout<typename DotFor<decltype(x)>::type>(p.head_dim).total();
  });
}

int64_t decode_scratch_of(const AttentionParams& p) {
  return DecodeScratch(nullptr, p.head_dim).total();
}

void run_prefill(const AttentionParams& p, const AttentionWork& work, float* scratch) {
  with_type(p.dtype, [&](auto x) {
    using T = decltype(x);
    attention_prefill<typename DotFor<T>::type, T>(p, work, scratch);
  });
}

void run_decode(const AttentionParams& p, const AttentionWork& work, float* scratch) {
  with_type(p.dtype, [&](auto x) { attention_decode<decltype(x)>(p, work, scratch); });
}

void run_combine(const AttentionParams& p, const AttentionWork& work, int64_t splits) {
  with_type(p.dtype, [&](auto x) { attention_combine<decltype(x)>(p, work, splits); });
}

int64_t packed_x_size_of(const Int8LinearParams& p, int64_t m_count) {
  return with_type(p.dtype, [&](auto x) {
    if (m_count <= kGemvRows) return packed_few_size<decltype(x)>(p, m_count);
    return packed_many_size<typename DotFor<decltype(x)>::type, decltype(x)>(p, m_count);
  });
}

void run_pack_x(const Int8LinearParams& p, int64_t m_begin, int64_t m_count, float* packed,
                int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto x) {
    using T = decltype(x);
    if (m_count <= kGemvRows) {
      pack_x_few<T>(p, m_begin, m_count, packed);
    } else {
      pack_x_many<typename DotFor<T>::type, T>(p, m_begin, m_count, packed, begin, end);
    }
  });
}

int64_t gemm_scratch_of(const Int8LinearParams&, int64_t m_count) {
  return gemm_scratch_size(m_count);
}

void run_gemv(const Int8LinearParams& p, const LinearWork& work) {
  with_type(p.dtype, [&](auto x) { linear_few<decltype(x)>(p, work); });
}

void run_gemm(const Int8LinearParams& p, const LinearWork& work, float* scratch) {
  with_type(p.dtype, [&](auto x) {
    using T = decltype(x);
    linear_many<typename DotFor<T>::type, T>(p, work, scratch);
  });
}

int64_t run_quantize(const QuantizeParams& p, int64_t begin, int64_t end) {
  return with_type(p.dtype, [&](auto x) { return quantize_rows<decltype(x)>(p, begin, end); });
}

void run_rope_append(const RopeAppendParams& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto x) { rope_append_tokens<decltype(x)>(p, begin, end); });
}

void run_add_norm(const AddNormParams& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto x) { add_norm_rows<decltype(x)>(p, begin, end); });
}

void run_silu_mul(const SiluMulParams& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto x) { silu_mul_rows<decltype(x)>(p, begin, end); });
}

void run_embed(const EmbedParams& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto x) { embed_tokens<decltype(x)>(p, begin, end); });
}

void run_argmax(const ArgmaxParams& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto x) { argmax_rows<decltype(x)>(p, begin, end); });
}

constexpr Kernels make_kernels(const char* name) {
  Kernels k{};
  k.name = name;
  k.prefill_rows = kBlockRows;
  k.prefill_blocks = kBlocks;
  k.decode_rows = kDecodeRows;
  k.prefill_scratch = prefill_scratch_of;
  k.decode_scratch = decode_scratch_of;
  k.attention_prefill = run_prefill;
  k.attention_decode = run_decode;
  k.attention_combine = run_combine;
  k.gemv_rows = kGemvRows;
  k.gemm_rows = kPanelRows;
  k.gemm_n_block = kChannelBlock;
  k.packed_x_size = packed_x_size_of;
  k.pack_x = run_pack_x;
  k.pack_rows = kLanes;
  k.gemm_scratch = gemm_scratch_of;
  k.linear_gemv = run_gemv;
  k.linear_gemm = run_gemm;
  k.quantize = run_quantize;
  k.rope_append = run_rope_append;
  k.add_norm = run_add_norm;
  k.silu_mul = run_silu_mul;
  k.embed = run_embed;
  k.argmax = run_argmax;
  return k;
}

}  // namespace
}  // namespace flashint8::cpu
