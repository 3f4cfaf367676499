// Plans attention on the CPU: which kernel, which pieces, in which order.
#include <algorithm>

#include "flashint8/cpu.h"
#include "kernels.h"
#include "workers.h"

namespace flashint8::cpu {
namespace {

constexpr int64_t kMinSplitKeys = 256;  // keys that are worth a piece of their own

struct Plan {
  bool decode = false;
  int64_t rows = 0;        // of one (batch row, KV head)
  int64_t block_rows = 0;  // rows of a piece
  int64_t blocks = 0;      // pieces that cover the rows
  int64_t splits = 1;      // pieces that share the keys of a block
};

Plan make_plan(const AttentionParams& p, const Kernels& kernels, int num_threads) {
  Plan plan;
  const int64_t heads = p.batch * p.num_kv_heads;
  plan.rows = p.seq_len_q * (p.num_heads / p.num_kv_heads);
  plan.decode = plan.rows <= kernels.decode_rows;
  plan.block_rows = plan.rows;
  if (!plan.decode) {
    // Large blocks pack each key for more rows; small ones keep every thread busy to the end.
    int64_t lane_blocks = kernels.prefill_blocks;
    const auto count = [&] {
      const int64_t rows = lane_blocks * kernels.prefill_rows;
      return heads * ceil_div(plan.rows, rows);
    };
    while (lane_blocks > 1 && count() < 4 * num_threads) lane_blocks /= 2;
    plan.block_rows = lane_blocks * kernels.prefill_rows;
  }
  plan.blocks = ceil_div(plan.rows, plan.block_rows);
  const int64_t pieces = heads * plan.blocks;
  if (pieces % num_threads != 0 && pieces < 4 * num_threads) {
    plan.splits =
        std::clamp<int64_t>(p.seq_len_kv / kMinSplitKeys, 1, ceil_div(4 * num_threads, pieces));
  }
  return plan;
}

// The piece, without its keys: `block` counts from the last rows, whose causal work is largest.
AttentionWork work_of(const AttentionParams& p, const Plan& plan, int64_t head, int64_t block) {
  AttentionWork work;
  work.batch = head / p.num_kv_heads;
  work.kv_head = head % p.num_kv_heads;
  work.row_begin = (plan.blocks - 1 - block) * plan.block_rows;
  work.row_end = std::min(work.row_begin + plan.block_rows, plan.rows);
  work.bounds = row_bounds(p, work.batch);
  return work;
}

// The keys that any row of the piece sees, or split `split` of them.
void set_keys(const AttentionParams& p, const Plan& plan, int64_t split, AttentionWork* work) {
  const int64_t group = p.num_heads / p.num_kv_heads;
  const RowBounds& bounds = work->bounds;
  int64_t first = bounds.first;
  int64_t last = bounds.last;
  if (p.causal != Causal::kNone) {
    const int64_t last_query = (work->row_end - 1) / group;
    last = std::min(last, last_query + bounds.diagonal + 1);
    if (p.window > 0) {
      first = std::max(first, work->row_begin / group + bounds.diagonal - p.window + 1);
    }
  }
  const int64_t keys = std::max<int64_t>(0, last - first);
  const int64_t chunk = (keys + plan.splits - 1) / plan.splits;
  work->key_begin = first + std::min(keys, split * chunk);
  work->key_end = first + std::min(keys, (split + 1) * chunk);
}

}  // namespace

void attention(const AttentionParams& p, const CpuThreads& threads) {
  const Kernels& kernels = active_kernels();
  if (p.batch == 0 || p.num_heads == 0 || p.seq_len_q == 0 || p.head_dim == 0) return;
  const Plan plan = make_plan(p, kernels, threads.num_threads);
  const int64_t heads = p.batch * p.num_kv_heads;
  const int64_t blocks = heads * plan.blocks;
  const int64_t pieces = blocks * plan.splits;
  const int64_t per_worker =
      aligned_floats(plan.decode ? kernels.decode_scratch(p) : kernels.prefill_scratch(p));
  const int64_t workers = num_workers(threads, pieces);
  const int64_t per_split = plan.block_rows * partial_size(p.head_dim);
  const int64_t partials = plan.splits > 1 ? pieces * per_split : 0;
  float* scratch = thread_scratch(workers * per_worker + partials);
  float* partial = plan.splits > 1 ? scratch + workers * per_worker : nullptr;

  for_each_piece(threads, pieces, [&](int64_t piece, int64_t worker) {
    const int64_t block = piece / plan.splits;
    const int64_t split = piece % plan.splits;
    AttentionWork work = work_of(p, plan, block % heads, block / heads);
    set_keys(p, plan, split, &work);
    if (partial) {
      // The splits of a block lie one after the other, each as long as its rows need.
      const int64_t rows = work.row_end - work.row_begin;
      work.partial =
          partial + block * plan.splits * per_split + split * rows * partial_size(p.head_dim);
    }
    float* own = scratch + worker * per_worker;
    (plan.decode ? kernels.attention_decode : kernels.attention_prefill)(p, work, own);
  });
  if (partial == nullptr) return;
  for_each_piece(threads, blocks, [&](int64_t block, int64_t) {
    AttentionWork work = work_of(p, plan, block % heads, block / heads);
    work.partial = partial + block * plan.splits * per_split;
    kernels.attention_combine(p, work, plan.splits);
  });
}

}  // namespace flashint8::cpu
