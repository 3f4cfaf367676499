// What one instruction set offers: a table of plain functions. Everything else (who works on what,
// threads, memory) is in attention.cpp and int8_linear.cpp, which are compiled once.
#pragma once

#include <cstdint>

#include "flashint8/attention.h"
#include "flashint8/decoder.h"
#include "flashint8/int8_linear.h"

namespace flashint8::cpu {

// A piece of attention that one thread does alone. The rows of a (batch row, KV head) are the
// queries of all heads that share the KV head: row r is query r / group of head r % group.
struct AttentionWork {
  int64_t batch = 0;
  int64_t kv_head = 0;
  int64_t row_begin = 0;
  int64_t row_end = 0;
  RowBounds bounds{};
  int64_t key_begin = 0;  // the keys of this piece; inside [bounds.first, bounds.last)
  int64_t key_end = 0;
  // nullptr: the piece has every key its rows see, and writes params.out. Else where to leave
  // head_dim sums, the maximum (base 2, scaled) and the sum of weights, for each row.
  float* partial = nullptr;
};

constexpr int64_t partial_size(int64_t head_dim) { return head_dim + 2; }

// Rows [m_begin, m_begin + m_count) of x times rows [n_begin, n_end) of the weight.
struct LinearWork {
  int64_t m_begin = 0;
  int64_t m_count = 0;
  int64_t n_begin = 0;
  int64_t n_end = 0;
  const float* packed_x = nullptr;  // from pack_x
};

struct Kernels {
  const char* name;

  // Attention. Scratch sizes are in floats; scratch is 64-byte aligned.
  int64_t prefill_rows;    // rows one lane block holds
  int64_t prefill_blocks;  // lane blocks that one piece of prefill holds at most
  int64_t decode_rows;     // pieces of at most so many rows may go to attention_decode
  int64_t (*prefill_scratch)(const AttentionParams& params);
  int64_t (*decode_scratch)(const AttentionParams& params);
  void (*attention_prefill)(const AttentionParams& params, const AttentionWork& work,
                            float* scratch);
  void (*attention_decode)(const AttentionParams& params, const AttentionWork& work,
                           float* scratch);
  // Adds up `splits` partial results of the rows of `work`, laid out one split after the other.
  void (*attention_combine)(const AttentionParams& params, const AttentionWork& work,
                            int64_t splits);

  // int8_linear. x is packed once for all workers, then each works on rows of the weight.
  int64_t gemv_rows;     // up to so many rows of x go to the kernel that streams the weight
  int64_t gemm_rows;     // rows of x one lane block holds
  int64_t gemm_n_block;  // rows of the weight one piece holds at most
  int64_t (*packed_x_size)(const Int8LinearParams& params, int64_t m_count);
  // Packs rows [begin, end) of those m_count rows; begin is a multiple of pack_rows. Up to
  // gemv_rows rows are packed by one call.
  void (*pack_x)(const Int8LinearParams& params, int64_t m_begin, int64_t m_count, float* packed,
                 int64_t begin, int64_t end);
  int64_t pack_rows;
  int64_t (*gemm_scratch)(const Int8LinearParams& params, int64_t m_count);
  void (*linear_gemv)(const Int8LinearParams& params, const LinearWork& work);
  void (*linear_gemm)(const Int8LinearParams& params, const LinearWork& work, float* scratch);

  // Rows [begin, end). Returns the first that is not finite, or -1.
  int64_t (*quantize)(const QuantizeParams& params, int64_t begin, int64_t end);

  // The decoder's small operators: tokens (of all batch rows) or rows [begin, end).
  void (*rope_append)(const RopeAppendParams& params, int64_t begin, int64_t end);
  void (*add_norm)(const AddNormParams& params, int64_t begin, int64_t end);
  void (*silu_mul)(const SiluMulParams& params, int64_t begin, int64_t end);
  void (*embed)(const EmbedParams& params, int64_t begin, int64_t end);
  void (*argmax)(const ArgmaxParams& params, int64_t begin, int64_t end);
};

// Compiled once without ISA flags: what the kernels need of the contract's inline functions.
int64_t x_row_offset(const RowLayout& rows, int64_t m);

const Kernels& portable_kernels();
#ifdef FLASHINT8_CPU_X86
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& avx512_bf16_kernels();
#endif

// The table isa_name() names.
const Kernels& active_kernels();

}  // namespace flashint8::cpu
