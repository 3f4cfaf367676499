// Threads and memory for the kernels: pieces of work are handed out one by one, so that threads
// finish together, and every worker has scratch that was allocated before it started.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "flashint8/types.h"

namespace flashint8::cpu {

// `floats` floats, 64-byte aligned, uninitialised. The memory belongs to the calling thread and is
// reused by its next call: an operator asks once, for everything. Throws std::bad_alloc.
float* thread_scratch(int64_t floats);

constexpr int64_t kScratchAlignment = 16;  // floats
constexpr int64_t aligned_floats(int64_t floats) {
  return (floats + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment;
}

inline int64_t num_workers(const CpuThreads& threads, int64_t pieces) {
  return pieces < threads.num_threads ? pieces : threads.num_threads;
}

// Calls fn(piece, worker) for every piece in [0, pieces), in order of handing out; worker is in
// [0, num_workers(threads, pieces)). fn must not throw.
template <class Fn>
void for_each_piece(const CpuThreads& threads, int64_t pieces, const Fn& fn) {
  struct Context {
    const Fn& fn;
    int64_t pieces;
    std::atomic<int64_t> next{0};
  } context{fn, pieces};
  const int64_t workers = num_workers(threads, pieces);
  const auto work = [](int64_t begin, int64_t end, void* opaque) {
    Context& c = *static_cast<Context*>(opaque);
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t piece; (piece = c.next.fetch_add(1, std::memory_order_relaxed)) < c.pieces;) {
        c.fn(piece, worker);
      }
    }
  };
  if (workers <= 1) {
    if (workers == 1) work(0, 1, &context);
    return;
  }
  threads.parallel_for(workers, 1, work, &context);
}

}  // namespace flashint8::cpu
