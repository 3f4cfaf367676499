// Hands out the tokens and rows of the decoder's small operators.
#include <algorithm>

#include "flashint8/cpu.h"
#include "kernels.h"
#include "workers.h"

namespace flashint8::cpu {
namespace {

// What one thread does in the time it takes to wake another: a decoder's step stays on one thread.
constexpr int64_t kPieceElements = 1 << 15;

template <class Params>
void run_rows(const Params& params, int64_t rows, int64_t elements_of_row,
              const CpuThreads& threads, void (*kernel)(const Params&, int64_t, int64_t)) {
  const int64_t step = std::max<int64_t>(1, kPieceElements / std::max<int64_t>(1, elements_of_row));
  for_each_piece(threads, ceil_div(rows, step), [&](int64_t piece, int64_t) {
    kernel(params, piece * step, std::min(rows, (piece + 1) * step));
  });
}

}  // namespace

void rope_append(const RopeAppendParams& p, const CpuThreads& threads) {
  const int64_t heads = p.num_heads + 2 * p.num_kv_heads;
  run_rows(p, p.batch * p.seq_len, heads * p.head_dim, threads, active_kernels().rope_append);
}

void add_norm(const AddNormParams& p, const CpuThreads& threads) {
  run_rows(p, p.rows, p.columns, threads, active_kernels().add_norm);
}

void silu_mul(const SiluMulParams& p, const CpuThreads& threads) {
  run_rows(p, p.rows, p.columns, threads, active_kernels().silu_mul);
}

void embed(const EmbedParams& p, const CpuThreads& threads) {
  run_rows(p, p.batch * p.seq_len, p.columns, threads, active_kernels().embed);
}

void argmax(const ArgmaxParams& p, const CpuThreads& threads) {
  run_rows(p, p.rows, p.columns, threads, active_kernels().argmax);
}

}  // namespace flashint8::cpu
