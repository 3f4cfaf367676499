// What both attention kernels need of a row: where it is, which keys it sees, how it ends.
#pragma once

#include "kernels.h"
#include "vector_math.h"

namespace flashint8::cpu {
namespace {

// Rows of one (batch row, KV head); see AttentionWork.
struct Rows {
  const AttentionParams& p;
  const AttentionWork& work;
  int64_t group = p.num_heads / p.num_kv_heads;

  int64_t query(int64_t r) const { return r / group; }
  int64_t head(int64_t r) const { return work.kv_head * group + r % group; }

  template <class T>
  const T* q(int64_t r) const {
    return static_cast<const T*>(p.q) + work.batch * p.q_stride.batch + head(r) * p.q_stride.head +
           query(r) * p.q_stride.seq;
  }
  template <class T>
  T* out(int64_t r) const {
    return static_cast<T*>(p.out) + work.batch * p.out_stride.batch + head(r) * p.out_stride.head +
           query(r) * p.out_stride.seq;
  }
  float* lse(int64_t r) const {
    return p.lse + (work.batch * p.num_heads + head(r)) * p.seq_len_q + query(r);
  }
  template <class T>
  const T* keys() const {
    return static_cast<const T*>(p.k) + work.batch * p.k_stride.batch +
           work.kv_head * p.k_stride.head;
  }
  template <class T>
  const T* values() const {
    return static_cast<const T*>(p.v) + work.batch * p.v_stride.batch +
           work.kv_head * p.v_stride.head;
  }
  // Row r sees keys [first(r), last(r)), of those in this piece; both grow with r.
  int64_t first(int64_t r) const {
    int64_t j = work.key_begin;
    if (p.causal != Causal::kNone && p.window > 0) {
      j = larger(j, query(r) + work.bounds.diagonal - p.window + 1);
    }
    return j;
  }
  int64_t last(int64_t r) const {
    int64_t j = work.key_end;
    if (p.causal != Causal::kNone) j = smaller(j, query(r) + work.bounds.diagonal + 1);
    return j;
  }
};

// The weight of a score s is exp2(s * factor - max), where s is q.k (softcap: what became of it).
struct ScoreScale {
  bool negate_q;  // so that the factor is positive, and the largest s has the largest weight
  float factor;
  float cap_in;  // softcap > 0: s becomes cap_out * tanh(s * cap_in)
  float cap_out;

  explicit ScoreScale(const AttentionParams& p) {
    negate_q = p.scale < 0.0f;
    float scale = negate_q ? -p.scale : p.scale;
    cap_out = p.softcap;
    cap_in = p.softcap > 0.0f ? scale / p.softcap : 0.0f;
    factor = (p.softcap > 0.0f ? 1.0f : scale) * kLog2e;
    // A masked score is -infinity and must stay so when it is multiplied.
    if (!(factor >= 1e-30f)) factor = 1e-30f;
  }
};

FLASHINT8_INLINE Vec capped(Vec s, const ScoreScale& scale) {
  return mul(set1(scale.cap_out), tanh(mul(s, set1(scale.cap_in))));
}

// The value to subtract for a row whose maximum so far is `max` (-infinity: no key seen yet).
FLASHINT8_INLINE Vec finite_max(Vec max_so_far) { return max(max_so_far, set1(-3.0e38f)); }

FLASHINT8_INLINE float inverse_of_sum(float sum) { return sum == 0.0f ? 0.0f : 1.0f / sum; }

FLASHINT8_INLINE float lse_of(float max_so_far, float sum) {
  return sum == 0.0f ? -kInfinity : max_so_far * kLn2 + __builtin_logf(sum);
}

// out[d] = sums[d] * inverse
template <class T>
void write_row(const float* sums, float inverse, int64_t head_dim, T* out) {
  int64_t d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) store(out + d, mul(load(sums + d), set1(inverse)));
  if (d < head_dim) {
    store_partial(out + d, mul(load_partial(sums + d, head_dim - d), set1(inverse)), head_dim - d);
  }
}

// Adds the partial results of `splits` pieces, in order. The sums end up in the first piece's.
template <class T>
void attention_combine(const AttentionParams& p, const AttentionWork& work, int64_t splits) {
  const Rows rows{p, work};
  const int64_t stride = partial_size(p.head_dim);
  const int64_t split_stride = (work.row_end - work.row_begin) * stride;
  for (int64_t r = work.row_begin; r < work.row_end; ++r) {
    float* first = work.partial + (r - work.row_begin) * stride;
    float row_max = -kInfinity;
    for (int64_t s = 0; s < splits; ++s) {
      const float m = first[s * split_stride + p.head_dim];
      if (m > row_max) row_max = m;
    }
    const float base = row_max == -kInfinity ? 0.0f : row_max;
    float row_sum = 0.0f;
    for (int64_t s = 0; s < splits; ++s) {
      float* piece = first + s * split_stride;
      alignas(64) float weight[kLanes];
      store(weight, exp2(set1(piece[p.head_dim] - base)));
      row_sum += weight[0] * piece[p.head_dim + 1];
      for (int64_t d = 0; d < p.head_dim; ++d) {
        first[d] = (s == 0 ? 0.0f : first[d]) + weight[0] * piece[d];
      }
    }
    write_row(first, inverse_of_sum(row_sum), p.head_dim, rows.out<T>(r));
    if (p.lse) *rows.lse(r) = lse_of(row_max, row_sum);
  }
}

}  // namespace
}  // namespace flashint8::cpu
