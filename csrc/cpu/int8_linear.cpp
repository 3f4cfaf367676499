// Plans int8_linear and quantize_per_channel on the CPU.
#include <algorithm>
#include <atomic>

#include "flashint8/cpu.h"
#include "kernels.h"
#include "workers.h"

namespace flashint8::cpu {
namespace {

constexpr int64_t kPackedLimit = 4 << 20;  // floats of x that are packed at a time

// Rows of x worked on at a time: at least one panel, so that the packed copy of x stays bounded.
int64_t rows_at_a_time(const Int8LinearParams& p, const Kernels& kernels) {
  if (p.m <= kernels.gemm_rows) return p.m;
  const int64_t panel = std::max<int64_t>(1, kernels.packed_x_size(p, kernels.gemm_rows));
  const int64_t panels = std::clamp<int64_t>(kPackedLimit / panel, 1, 8);
  return std::min(p.m, panels * kernels.gemm_rows);
}

constexpr int64_t kChannelUnit = 16;
constexpr int64_t kStreamBytes = 256 << 10;  // of the weight, that a thread should read in one go

// Rows of the weight in a piece: small enough that threads finish together.
int64_t gemm_channels(const Int8LinearParams& p, int64_t most, int num_threads) {
  const int64_t even = p.n / (8 * num_threads) / kChannelUnit * kChannelUnit;
  return std::clamp(even, kChannelUnit, most);
}

// The same where the time is that of reading the weight: a piece for each thread, or several where
// even then each is long.
int64_t gemv_channels(const Int8LinearParams& p, int num_threads) {
  const int64_t each = std::clamp<int64_t>(p.n * p.k / num_threads / kStreamBytes, 1, 8);
  const int64_t pieces = each * num_threads;
  return ceil_div(p.n, pieces * kChannelUnit) * kChannelUnit;
}

void multiply_rows(const Int8LinearParams& p, const CpuThreads& threads, const Kernels& kernels,
                   int64_t m_begin, int64_t m_count) {
  const bool gemv = m_count <= kernels.gemv_rows;
  const int64_t channels = gemv ? gemv_channels(p, threads.num_threads)
                                : gemm_channels(p, kernels.gemm_n_block, threads.num_threads);
  const int64_t pieces = ceil_div(p.n, channels);
  const int64_t packed_size = aligned_floats(kernels.packed_x_size(p, m_count));
  const int64_t per_worker = gemv ? 0 : aligned_floats(kernels.gemm_scratch(p, m_count));
  float* packed = thread_scratch(packed_size + num_workers(threads, pieces) * per_worker);
  const int64_t pack_pieces = ceil_div(m_count, kernels.pack_rows);
  const auto pack = [&](int64_t piece, int64_t) {
    const int64_t begin = piece * kernels.pack_rows;
    kernels.pack_x(p, m_begin, m_count, packed, begin,
                   std::min(m_count, begin + kernels.pack_rows));
  };
  if (pack_pieces == 1) {
    pack(0, 0);
  } else {
    for_each_piece(threads, pack_pieces, pack);
  }
  for_each_piece(threads, pieces, [&](int64_t piece, int64_t worker) {
    LinearWork work;
    work.m_begin = m_begin;
    work.m_count = m_count;
    work.n_begin = piece * channels;
    work.n_end = std::min(p.n, work.n_begin + channels);
    work.packed_x = packed;
    if (gemv) {
      kernels.linear_gemv(p, work);
    } else {
      kernels.linear_gemm(p, work, packed + packed_size + worker * per_worker);
    }
  });
}

}  // namespace

int64_t x_row_offset(const RowLayout& rows, int64_t m) { return row_offset(rows, m); }

void int8_linear(const Int8LinearParams& p, const CpuThreads& threads) {
  const Kernels& kernels = active_kernels();
  if (p.m == 0 || p.n == 0) return;
  const int64_t step = rows_at_a_time(p, kernels);
  for (int64_t m = 0; m < p.m; m += step) {
    multiply_rows(p, threads, kernels, m, std::min(step, p.m - m));
  }
}

int64_t quantize_per_channel(const QuantizeParams& p, const CpuThreads& threads) {
  const Kernels& kernels = active_kernels();
  constexpr int64_t kRows = 16;
  std::atomic<int64_t> first_bad{p.n};
  for_each_piece(threads, ceil_div(p.n, kRows), [&](int64_t piece, int64_t) {
    const int64_t begin = piece * kRows;
    const int64_t bad = kernels.quantize(p, begin, std::min(p.n, begin + kRows));
    if (bad < 0) return;
    int64_t known = first_bad.load(std::memory_order_relaxed);
    while (bad < known && !first_bad.compare_exchange_weak(known, bad)) {
    }
  });
  const int64_t bad = first_bad.load();
  return bad < p.n ? bad : -1;
}

}  // namespace flashint8::cpu
