// What the splits of the decode kernel leave for the merge.
#pragma once

#include "flashint8/attention.h"
#include "flashint8/decoder.h"

namespace flashint8::cuda {

// The workspace, in fp32: for split `split` of row `row` (of all heads and batch rows, as lse
// counts them) its running maximum and sum, and its unnormalised output of head_dim columns.
struct PartialLayout {
  int64_t rows;
  int num_splits;
  int head_dim;  // of the instantiation: the columns are filled

  FLASHINT8_HOST_DEVICE int64_t state(int split, int64_t row) const {
    return 2 * (split * rows + row);
  }
  FLASHINT8_HOST_DEVICE int64_t output(int split, int64_t row) const {
    return 2 * num_splits * rows + (split * rows + row) * head_dim;
  }
};

struct DecodeArgs {
  AttentionParams params;
  int pack;          // query heads of a KV head that share a block's rows
  int num_m_blocks;  // blocks of 16 rows for pack heads
  int num_splits;
  int num_warps;
  bool early_trigger;       // of the merge
  RopeAppendParams append;  // k nullptr: nothing is appended
};

}  // namespace flashint8::cuda
