// What the prefill kernels are told, and which queries of which head a block owns.
#pragma once

#include "flashint8/attention.h"

namespace flashint8::cuda {

struct PrefillArgs {
  AttentionParams params;
  int num_m_blocks;
  int section;  // heads (over all batch rows) whose blocks run together; see block_work
  bool early_trigger;
  // With fp16_accumulate: a power of two that the queries are multiplied with, so that sums in fp16
  // stay far from its largest number; params.scale has the rest.
  float query_factor;
};

struct BlockWork {
  int m_block;
  int head;
  int64_t batch;
};

// Work number `index` of num_m_blocks * num_heads * batch. Heads are taken in sections whose keys
// and values fit in L2 together; within a section the last query block of every head comes first,
// since under a causal mask it has the most keys.
__device__ __forceinline__ BlockWork block_work(const PrefillArgs& args, int index) {
  const int heads = static_cast<int>(args.params.num_heads);
  const int all_heads = heads * static_cast<int>(args.params.batch);
  const int per_section = args.section * args.num_m_blocks;
  const int section = index / per_section;
  const int rest = index - section * per_section;
  const int section_heads = min(args.section, all_heads - section * args.section);
  const int rank = rest / section_heads;
  const int head = section * args.section + rest - rank * section_heads;
  return {args.num_m_blocks - 1 - rank, head % heads, head / heads};
}

}  // namespace flashint8::cuda
