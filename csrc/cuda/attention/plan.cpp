// Which attention kernel runs, as a pure function of numbers.
#include "flashint8/plan.h"

#include <algorithm>

#include "variants.h"

namespace flashint8 {
namespace {

constexpr int64_t kMaxWorkspaceBytes = int64_t{8} << 20;
constexpr int kMaxSplits = 128;
constexpr int kDecodeWarps = 4;
// Fewer queries than this go to the decode kernel, with the heads of a KV head packed together.
constexpr int64_t kPackBelow = 16;
// A cache this long is worth splitting over blocks when the prefill grid leaves the chip half
// empty.
constexpr int64_t kSplitFrom = 2048;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool aligned(const void* pointer, const AttentionStrides& stride, const AttentionParams& p,
             int64_t heads, int64_t seq_len) {
  const auto multiple = [](int64_t size, int64_t s) { return size <= 1 || s % 8 == 0; };
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && multiple(p.batch, stride.batch) &&
         multiple(heads, stride.head) && multiple(seq_len, stride.seq);
}

bool all_aligned(const AttentionParams& p) {
  return aligned(p.q, p.q_stride, p, p.num_heads, p.seq_len_q) &&
         aligned(p.k, p.k_stride, p, p.num_kv_heads, p.seq_len_kv) &&
         aligned(p.v, p.v_stride, p, p.num_kv_heads, p.seq_len_kv);
}

// The number of splits that fills whole rounds of one block a multiprocessor best: the smallest
// within 15% of the best, so that the merge stays small. A split has a tile for each warp at least.
int choose_splits(int64_t blocks, int64_t tiles, int num_warps, int64_t bytes_per_split,
                  const Card& card) {
  int64_t most = std::min<int64_t>(kMaxSplits, ceil_div(tiles, num_warps));
  most = std::max<int64_t>(1, std::min(most, kMaxWorkspaceBytes / bytes_per_split));
  const auto efficiency = [&](int64_t splits) {
    const double rounds = static_cast<double>(blocks * splits) / card.sm_count;
    return rounds / static_cast<double>(ceil_div(blocks * splits, card.sm_count));
  };
  double best = 0;
  for (int64_t s = 1; s <= most; ++s) best = std::max(best, efficiency(s));
  int64_t splits = 1;
  while (splits < most && efficiency(splits) < 0.85 * best) ++splits;
  return static_cast<int>(splits);
}

AttentionPlan plan_decode(const AttentionParams& p, const Card& card, bool vectorized) {
  AttentionPlan plan;
  plan.kernel = AttentionKernel::kDecode;
  plan.dtype = p.dtype;
  plan.vectorized = vectorized;
  for (const int head_dim : kDecodeHeadDims) {
    plan.head_dim = head_dim;
    // The unaligned variant exists from 128 on.
    if (head_dim >= p.head_dim && (vectorized || head_dim >= 128)) break;
  }
  plan.block_m = kDecodeRows;
  plan.block_n = decode_keys(plan.head_dim);
  plan.chunk = plan.block_n;
  plan.stages = kDecodeStages;
  plan.pack = p.seq_len_q < kPackBelow
                  ? static_cast<int>(p.num_heads / std::max<int64_t>(1, p.num_kv_heads))
                  : 1;
  plan.num_warps = kDecodeWarps;
  while (plan.num_warps > 1 &&
         decode_shared_bytes(plan.head_dim, plan.num_warps) > card.shared_memory_per_block) {
    plan.num_warps /= 2;
  }
  const int64_t blocks =
      ceil_div(plan.pack * p.seq_len_q, kDecodeRows) * p.batch * p.num_heads / plan.pack;
  const int64_t rows = p.batch * p.num_heads * p.seq_len_q;
  const int64_t bytes_per_split = rows * (plan.head_dim + 2) * 4;
  const int64_t tiles = std::max<int64_t>(1, ceil_div(p.seq_len_kv, plan.block_n));
  plan.num_splits = choose_splits(blocks, tiles, plan.num_warps, bytes_per_split, card);
  plan.overlapped_combine = card.code >= 90 && plan.num_splits > 1;
  plan.num_blocks = blocks * plan.num_splits;
  plan.shared_bytes = decode_shared_bytes(plan.head_dim, plan.num_warps);
  plan.workspace_bytes = plan.num_splits > 1 ? bytes_per_split * plan.num_splits : 0;
  return plan;
}

AttentionPlan plan_prefill(const AttentionParams& p, const Card& card) {
  AttentionPlan plan;
  plan.kernel = AttentionKernel::kPrefill;
  plan.dtype = p.dtype;
  for (size_t i = 0; i < kNumPrefillVariants; ++i) {
    const PrefillVariant& v = kPrefillVariants[i];
    if (v.head_dim < p.head_dim) continue;
    if (plan.head_dim != 0 && v.head_dim != plan.head_dim) break;
    if (v.shared_bytes() > card.shared_memory_per_block) continue;
    plan.variant = static_cast<int>(i);
    plan.head_dim = v.head_dim;
    plan.block_m = v.block_m;
    plan.block_n = v.block_n;
    plan.chunk = v.chunk;
    plan.num_warps = v.num_warps;
    plan.stages = v.stages;
    plan.shared_bytes = v.shared_bytes();
    plan.num_blocks = ceil_div(p.seq_len_q, v.block_m) * p.num_heads * p.batch;
    if (plan.num_blocks <= int64_t{v.max_blocks_per_sm} * card.sm_count) break;
  }
  return plan;
}

}  // namespace

AttentionPlan plan_attention(const AttentionParams& p, const Card& card) {
  if (!all_aligned(p)) return plan_decode(p, card, false);
  if (p.seq_len_q < kPackBelow) return plan_decode(p, card, true);
  const AttentionPlan prefill = plan_prefill(p, card);
  const int64_t blocks = ceil_div(p.seq_len_q, kDecodeRows) * p.num_heads * p.batch;
  const bool half_empty = blocks * 2 <= card.sm_count;
  return half_empty && p.seq_len_kv >= kSplitFrom ? plan_decode(p, card, true) : prefill;
}

}  // namespace flashint8
