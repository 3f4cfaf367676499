// Types shared by every kernel. Nothing here, or in the other headers of this folder, comes from
// torch.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FLASHINT8_HOST_DEVICE __host__ __device__
#else
#define FLASHINT8_HOST_DEVICE
#endif

namespace flashint8 {

FLASHINT8_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

enum class DType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

// What a plan needs to know of a GPU. Filled from the device by csrc/ops, or by hand for a card
// that is not there.
struct Card {
  int compute_capability = 0;       // 10 * major + minor: 86, 89, 90, ...
  int sm_count = 0;                 // streaming multiprocessors
  int shared_memory_per_block = 0;  // opt-in limit of dynamic shared memory, bytes
  int code = 0;                     // version of the built code that it runs, as 80 or 90
  bool own_code = false;            // that code was built for this very card ("90a")
};

// Whether the code that the card runs can wait on the device for the kernel ahead of it
// (cuda/device/dependent_launch.cuh), so that it may be launched before that one has ended.
inline bool waits_on_device(const Card& card) { return card.code >= 90; }

// Whether the card runs code with Hopper's own instructions: products of warpgroups, the copy
// engine, clusters of blocks.
inline bool has_hopper_code(const Card& card) {
  return card.own_code && card.code == 90 && card.compute_capability == 90;
}

// Where row m of a tensor begins: m is split over up to 4 leading dimensions (already merged where
// their strides allow it), outermost first; unused ones are {1, 0} at the front. Strides in
// elements.
struct RowLayout {
  int64_t size[4] = {1, 1, 1, 1};
  int64_t stride[4] = {0, 0, 0, 0};
};

FLASHINT8_HOST_DEVICE inline int64_t row_offset(const RowLayout& rows, int64_t m) {
  int64_t offset = 0;
  for (int d = 3; d > 0; --d) {
    if (rows.size[d] == 1) continue;
    offset += (m % rows.size[d]) * rows.stride[d];
    m /= rows.size[d];
  }
  return offset + m * rows.stride[0];
}

// Runs fn(begin, end, context) over [0, count) in chunks of at least `grain`, on several threads.
// fn must not throw. csrc/ops fills it from torch's thread pool; nullptr-free.
using ParallelFor = void (*)(int64_t count, int64_t grain,
                             void (*fn)(int64_t begin, int64_t end, void* context), void* context);

struct CpuThreads {
  ParallelFor parallel_for;
  int num_threads;  // >= 1, what parallel_for will use at most
};

}  // namespace flashint8
