// Plans are data: pure functions of numbers decide which CUDA kernel runs. No CUDA header here, so
// that they can be called and tested where there is no GPU.
#pragma once

#include <cstdint>

#include "flashint8/attention.h"
#include "flashint8/int8_linear.h"
#include "flashint8/types.h"

namespace flashint8 {

// kPrefillSm90: Hopper's own, with its warpgroup products and copy engine.
enum class AttentionKernel : int32_t { kPrefill = 0, kDecode = 1, kPrefillSm90 = 2 };

struct AttentionPlan {
  AttentionKernel kernel = AttentionKernel::kPrefill;
  DType dtype = DType::kFloat16;
  int head_dim = 0;  // the instantiated size the tensors' head_dim is filled into
  int block_m = 0;   // query rows of a block (decode: rows of the packed tile)
  int block_n = 0;   // keys of a tile
  int num_warps = 0;
  int stages = 0;          // depth of the key/value pipeline
  bool vectorized = true;  // 16-byte loads; false: the variant for unaligned pointers or strides
  int chunk = 0;           // prefill: keys of one softmax step
  int variant = 0;         // prefill: row of kPrefillVariants or kSm90PrefillTiles
  int pack = 1;            // decode: query heads of a KV head that share a block
  int num_splits = 1;      // decode: blocks that share one row's keys
  bool appends = false;    // decode: the kernel takes params.append
  bool dependent_launch = false;  // see LinearPlan
  // The next kernel's blocks may come at once; decode: when the merge of the splits begins.
  bool early_trigger = false;
  int64_t num_blocks = 0;
  int64_t shared_bytes = 0;
  int64_t workspace_bytes = 0;
};

// Reads the numbers of `params` (sizes, strides, pointer alignment, features), never the data.
AttentionPlan plan_attention(const AttentionParams& params, const Card& card);

// kGemvSm90: built for Hopper. kGemmSm90: Hopper's own matrix instructions. kLibrary: weights are
// converted block_n channels at a time into a workspace, and torch's own 16-bit product multiplies
// them: on data-centre cards whose own instructions we do not use, where x has many rows and there
// is no activation.
enum class LinearKernel : int32_t {
  kGemv = 0,
  kGemm = 1,
  kLibrary = 2,
  kGemmSm90 = 3,
  kGemvSm90 = 4,
};

struct LinearPlan {
  LinearKernel kernel = LinearKernel::kGemv;
  DType dtype = DType::kFloat16;
  int block_m = 0;
  int block_n = 0;
  int block_k = 0;
  int num_warps = 0;
  int stages = 0;
  bool vectorized = true;
  int num_splits = 1;  // the most blocks that share an output tile; kGemmSm90: those of a cluster
  int cluster = 1;     // kGemmSm90: blocks, of neighbouring channels, that share their rows of x
  // The kernel may start while the one ahead of it in the stream still runs, and waits on the
  // device.
  bool dependent_launch = false;
  int64_t streamed_tiles = 0;  // kGemmSm90: of a cluster, whose k is dealt out over all clusters
  int64_t num_blocks = 0;
  int64_t shared_bytes = 0;
  int64_t workspace_bytes = 0;
};

LinearPlan plan_int8_linear(const Int8LinearParams& params, const Card& card);

}  // namespace flashint8
