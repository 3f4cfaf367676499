// Which attention kernel runs, as a pure function of numbers.
#include "flashint8/plan.h"

#include <algorithm>

#include "flashint8/decoder.h"
#include "variants.h"

namespace flashint8 {
namespace {

constexpr int64_t kMaxWorkspaceBytes = int64_t{8} << 20;
constexpr int kMaxSplits = 128;
constexpr int kDecodeWarps = 4;
// From so many keys a split on, a block that has a multiprocessor for itself is of kDecodeMaxWarps
// warps, where they fit (docs/performance.md).
constexpr int64_t kLongSplit = 512;
// Fewer queries than this go to the decode kernel, with the heads of a KV head packed together.
constexpr int64_t kPackBelow = 16;
// A cache this long is worth splitting over blocks when the prefill grid leaves the chip half
// empty.
constexpr int64_t kSplitFrom = 2048;

bool aligned(const void* pointer, const AttentionStrides& stride, const AttentionParams& p,
             int64_t heads, int64_t seq_len) {
  const auto multiple = [](int64_t size, int64_t s) { return size <= 1 || s % 8 == 0; };
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && multiple(p.batch, stride.batch) &&
         multiple(heads, stride.head) && multiple(seq_len, stride.seq);
}

// Whether the decode kernel can take the token of a decoding step: its lanes hold the partners of a
// rotation where that turns whole heads by their halves, and heads fill the kernel's columns.
bool can_append(const AttentionParams& p, const AttentionPlan& plan) {
  const RopeAppendParams& a = *p.append;
  const bool rotates = a.cos_sin != nullptr;
  const bool table_aligned =
      reinterpret_cast<uintptr_t>(a.cos_sin) % 16 == 0 && a.cos_sin_stride % 4 == 0;
  return plan.vectorized && p.seq_len_q == 1 &&
         (!rotates || (!a.interleaved && a.rotary_dim == p.head_dim &&
                       p.head_dim == plan.head_dim && table_aligned)) &&
         aligned(a.k, a.k_stride, p, p.num_kv_heads, 1) &&
         aligned(a.v, a.v_stride, p, p.num_kv_heads, 1);
}

bool all_aligned(const AttentionParams& p) {
  return aligned(p.q, p.q_stride, p, p.num_heads, p.seq_len_q) &&
         aligned(p.k, p.k_stride, p, p.num_kv_heads, p.seq_len_kv) &&
         aligned(p.v, p.v_stride, p, p.num_kv_heads, p.seq_len_kv);
}

// The number of splits with the least time: that of reading the keys and values, by the share of
// the chip that the blocks fill, and that of merging the splits. About seven in ten multiprocessors
// draw nearly all the bandwidth, which is enough but for long caches in the fast memory of
// data-centre cards from Hopper on. A split has a tile for each warp at least.
int choose_splits(int64_t blocks, int64_t tiles, int num_warps, int64_t cache_bytes,
                  int64_t bytes_per_split, const Card& card) {
  constexpr double kBytesPerClock = 13;  // a multiprocessor's share of the bandwidth
  constexpr double kMergeClocks = 100;   // of one split
  constexpr int64_t kLongCache = int64_t{14} << 20;
  const int generation = card.compute_capability / 10;
  const bool fast_memory = generation >= 9 && generation < 11;
  const double saturated = fast_memory && cache_bytes >= kLongCache ? 0.97 : 0.72;
  int64_t most = std::min<int64_t>(kMaxSplits, ceil_div(tiles, num_warps));
  most = std::max<int64_t>(1, std::min(most, kMaxWorkspaceBytes / bytes_per_split));
  const auto clocks = [&](int64_t splits) {
    const double rounds = static_cast<double>(blocks * splits) / card.sm_count;
    const double filled = rounds / static_cast<double>(ceil_div(blocks * splits, card.sm_count));
    return static_cast<double>(cache_bytes) / (kBytesPerClock * card.sm_count) /
               std::min(1.0, filled / saturated) +
           kMergeClocks * static_cast<double>(splits);
  };
  int64_t best = 1;
  for (int64_t s = 2; s <= most; ++s) {
    if (clocks(s) < clocks(best)) best = s;
  }
  return static_cast<int>(best);
}

// Of keys and values.
int64_t cache_bytes(const AttentionParams& p) {
  return 4 * p.batch * p.num_kv_heads * p.seq_len_kv * p.head_dim;
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
  plan.appends = p.append != nullptr && can_append(p, plan);
  const int token_bytes = plan.appends ? decode_token_bytes(plan.head_dim) : 0;
  const auto shared_bytes = [&](int num_warps) {
    return decode_shared_bytes(plan.head_dim, num_warps) + token_bytes;
  };
  const auto fits = [&](int num_warps) {
    return shared_bytes(num_warps) <= card.shared_memory_per_block;
  };
  plan.num_warps = kDecodeWarps;
  while (plan.num_warps > 1 && !fits(plan.num_warps)) plan.num_warps /= 2;
  const int64_t blocks =
      ceil_div(plan.pack * p.seq_len_q, kDecodeRows) * p.batch * p.num_heads / plan.pack;
  const int64_t rows = p.batch * p.num_heads * p.seq_len_q;
  const int64_t bytes_per_split = rows * (plan.head_dim + 2) * 4;
  const int64_t tiles = std::max<int64_t>(1, ceil_div(p.seq_len_kv, plan.block_n));
  plan.num_splits =
      choose_splits(blocks, tiles, plan.num_warps, cache_bytes(p), bytes_per_split, card);
  plan.num_blocks = blocks * plan.num_splits;
  if (p.seq_len_kv >= kLongSplit * plan.num_splits && plan.num_blocks <= card.sm_count &&
      fits(kDecodeMaxWarps)) {
    plan.num_warps = kDecodeMaxWarps;
  }
  plan.shared_bytes = shared_bytes(plan.num_warps);
  plan.workspace_bytes = plan.num_splits > 1 ? bytes_per_split * plan.num_splits : 0;
  return plan;
}

// Blocks of block_m queries of all heads.
int64_t query_blocks(const AttentionParams& p, int block_m) {
  return ceil_div(p.seq_len_q, block_m) * p.num_heads * p.batch;
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
    plan.num_blocks = query_blocks(p, v.block_m);
    if (plan.num_blocks <= int64_t{v.max_blocks_per_sm} * card.sm_count) break;
  }
  return plan;
}

// The copy engine takes strides of multiples of 16 bytes, and none of 0.
bool has_boxes(const AttentionStrides& stride, int64_t batch, int64_t heads, int64_t seq_len) {
  const auto positive = [](int64_t size, int64_t s) { return size <= 1 || s > 0; };
  return seq_len > 0 && positive(batch, stride.batch) && positive(heads, stride.head) &&
         positive(seq_len, stride.seq);
}

// Hopper's kernel, where it is the faster one: docs/performance.md.
const Sm90PrefillTile* find_sm90_tile(const AttentionParams& p, const Card& card) {
  if (!has_hopper_code(card) || p.fp16_accumulate) return nullptr;
  if (!has_boxes(p.q_stride, p.batch, p.num_heads, p.seq_len_q) ||
      !has_boxes(p.k_stride, p.batch, p.num_kv_heads, p.seq_len_kv) ||
      !has_boxes(p.v_stride, p.batch, p.num_kv_heads, p.seq_len_kv)) {
    return nullptr;
  }
  for (const Sm90PrefillTile& tile : kSm90PrefillTiles) {
    const int64_t blocks = query_blocks(p, tile.block_m);
    if (tile.head_dim >= p.head_dim && tile.head_dim < 2 * p.head_dim &&
        tile.block_m <= p.seq_len_q && tile.shared_bytes() <= card.shared_memory_per_block &&
        blocks <= INT32_MAX &&
        100 * blocks >= int64_t{tile.min_blocks_per_100_sms} * card.sm_count) {
      return &tile;
    }
  }
  return nullptr;
}

AttentionPlan plan_prefill_sm90(const AttentionParams& p, const Card& card,
                                const Sm90PrefillTile& tile) {
  AttentionPlan plan;
  plan.kernel = AttentionKernel::kPrefillSm90;
  plan.dtype = p.dtype;
  plan.variant = static_cast<int>(&tile - kSm90PrefillTiles);
  plan.head_dim = tile.head_dim;
  plan.block_m = tile.block_m;
  plan.block_n = tile.block_n;
  plan.chunk = tile.block_n;
  plan.num_warps = tile.threads() / 32;
  plan.stages = tile.stages;
  plan.shared_bytes = tile.shared_bytes();
  plan.num_blocks = query_blocks(p, tile.block_m);
  // Shares are dealt out beforehand: where rows have lengths of their own, they would not be equal.
  const bool ragged = p.batch > 1 && (p.kv_lengths != nullptr || p.kv_start != nullptr);
  if (p.seq_len_kv <= kSm90StayUpTo && !ragged) {
    plan.num_blocks = std::min<int64_t>(plan.num_blocks, card.sm_count);
  }
  return plan;
}

// Few blocks of queries, many keys: the chip is filled by splitting the keys.
bool split_is_better(const AttentionParams& p, const Card& card) {
  const int64_t blocks = query_blocks(p, kDecodeRows);
  return blocks * 2 <= card.sm_count && p.seq_len_kv >= kSplitFrom;
}

}  // namespace

AttentionPlan plan_attention(const AttentionParams& p, const Card& card) {
  const bool vectorized = all_aligned(p);
  AttentionPlan plan;
  if (vectorized && p.seq_len_q >= kPackBelow && !split_is_better(p, card)) {
    const Sm90PrefillTile* tile = find_sm90_tile(p, card);
    plan = tile != nullptr ? plan_prefill_sm90(p, card, *tile) : plan_prefill(p, card);
  } else {
    plan = plan_decode(p, card, vectorized);
  }
  plan.dependent_launch = waits_on_device(card);
  if (plan.kernel == AttentionKernel::kDecode) {
    // A product behind the merge asks for its first weights then; a long cache needs the memory for
    // itself. Measured in whole models.
    constexpr int64_t kShortCache = int64_t{6} << 20;
    plan.early_trigger = cache_bytes(p) <= kShortCache;
  } else {
    // Waiting blocks of the next kernel take room: where the grid fills more than the chip, they
    // would upset which blocks run together.
    plan.early_trigger = plan.num_blocks <= card.sm_count;
  }
  return plan;
}

}  // namespace flashint8
