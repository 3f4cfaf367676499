// Attention for few rows (decoding): bound by reading the cache, so that each key and value row is
// read once, as it lies, for all query heads that share it, and nothing is packed.
//
// kRows rows (1, 2, 4 or 8; missing ones repeat the last) are worked on together, in blocks of
// kDecodeKeys keys: scores[key][row], softmax, out[row][dim] += weights * values. The lanes run
// along head_dim for the products, and along (key, row) for the softmax: since kRows divides
// kLanes, lane i always belongs to row i % kRows.
#pragma once

#include "attention_rows.h"
#include "decode_products.h"

namespace flashint8::cpu {
namespace {

constexpr int64_t kDecodeKeys = 128;
constexpr int64_t kDecodeRows = kLanes < 8 ? kLanes : 8;

struct DecodeScratch {
  float* q;        // [chunk][row][KeyChunk::kQuery]
  float* out;      // [rows][padded]
  float* scores;   // [kDecodeKeys + kLanes][rows]
  int64_t padded;  // head_dim, to whole chunks

  DecodeScratch(float* scratch, int64_t head_dim) : padded(round_up(head_dim, kChunk)) {
    q = scratch;
    out = q + kDecodeRows * padded;
    scores = out + kDecodeRows * padded;
  }
  int64_t total() const { return 2 * kDecodeRows * padded + (kDecodeKeys + kLanes) * kDecodeRows; }
};

// Every lane becomes the largest (or the sum) of the lanes that belong to its row.
template <int kRows, bool kSum>
FLASHINT8_INLINE Vec over_keys(Vec v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int r = 0; r < kRows; ++r) {
    float x = lanes[r];
    for (int i = r + kRows; i < kLanes; i += kRows) {
      x = kSum ? x + lanes[i] : (lanes[i] > x ? lanes[i] : x);
    }
    for (int i = r; i < kLanes; i += kRows) lanes[i] = x;
  }
  return load(lanes);
}

template <int kRows, class T>
void decode_rows(const AttentionParams& p, const AttentionWork& work, float* scratch) {
  const Rows rows{p, work};
  const ScoreScale scale(p);
  const DecodeScratch s(scratch, p.head_dim);
  const int64_t num_rows = work.row_end - work.row_begin;
  int64_t first[kRows], last[kRows];
  for (int64_t r = 0; r < kRows; ++r) {
    const int64_t row = work.row_begin + smaller(r, num_rows - 1);
    first[r] = rows.first(row) - work.key_begin;
    last[r] = rows.last(row) - work.key_begin;
    const T* q = rows.q<T>(row);
    constexpr int64_t kQuery = KeyChunk<T>::kQuery;
    for (int64_t d = 0; d < p.head_dim; d += kChunk) {
      KeyChunk<T>::pack_query(q + d, smaller(kChunk, p.head_dim - d), scale.negate_q,
                              s.q + (d / kChunk * kRows + r) * kQuery);
    }
    for (int64_t d = 0; d < s.padded; d += kLanes) store(s.out + r * s.padded + d, zero());
  }
  Vec row_max = set1(-kInfinity);
  Vec row_sum = zero();
  const T* keys = rows.keys<T>() + work.key_begin * p.k_stride.seq;
  const T* values = rows.values<T>() + work.key_begin * p.v_stride.seq;
  float key_of_lane[kLanes];
  for (int i = 0; i < kLanes; ++i) key_of_lane[i] = static_cast<float>(i / kRows);
  for (int64_t key = first[0]; key < last[kRows - 1]; key += kDecodeKeys) {
    const int64_t count = smaller(kDecodeKeys, last[kRows - 1] - key);
    const int64_t total = round_up(count * kRows, kLanes);
    decode_scores<kRows>(keys + key * p.k_stride.seq, p.k_stride.seq, count, p.head_dim, s.q,
                         s.scores);
    float low[kLanes], high[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      low[i] = static_cast<float>(larger(0, smaller(count, first[i % kRows] - key)));
      high[i] = static_cast<float>(larger(0, smaller(count, last[i % kRows] - key)));
    }
    Vec largest = set1(-kInfinity);
    for (int64_t i = 0; i < total; i += kLanes) {
      Vec x = load(s.scores + i);
      if (scale.cap_out > 0.0f) x = capped(x, scale);
      const Vec n = add(load(key_of_lane), set1(static_cast<float>(i / kRows)));
      x = keep_between(x, n, load(low), load(high));
      store(s.scores + i, x);
      largest = max(x, largest);
    }
    const Vec new_max = max(mul(over_keys<kRows, false>(largest), set1(scale.factor)), row_max);
    const Vec base = finite_max(new_max);
    const Vec rescale = exp2(sub(row_max, base));
    row_max = new_max;
    row_sum = mul(row_sum, rescale);
    for (int64_t i = 0; i < total; i += kLanes) {
      const Vec weight = exp2(fma(load(s.scores + i), set1(scale.factor), sub(zero(), base)));
      row_sum = add(row_sum, weight);
      store(s.scores + i, weight);
    }
    float rescale_of[kLanes];
    store(rescale_of, rescale);
    for (int64_t r = 0; r < kRows; ++r) {
      float* out = s.out + r * s.padded;
      for (int64_t d = 0; d < s.padded; d += kLanes) {
        store(out + d, mul(load(out + d), set1(rescale_of[r])));
      }
    }
    decode_values<kRows>(values + key * p.v_stride.seq, p.v_stride.seq, count, p.head_dim, s.scores,
                         s.out, s.padded);
  }
  float max_of[kLanes], sum_of[kLanes];
  store(max_of, row_max);
  store(sum_of, over_keys<kRows, true>(row_sum));
  for (int64_t r = 0; r < num_rows; ++r) {
    const int64_t row = work.row_begin + r;
    order_chunks<T>(s.out + r * s.padded, p.head_dim);
    if (work.partial) {
      float* partial = work.partial + r * partial_size(p.head_dim);
      memcpy(partial, s.out + r * s.padded, static_cast<size_t>(p.head_dim) * sizeof(float));
      partial[p.head_dim] = max_of[r];
      partial[p.head_dim + 1] = sum_of[r];
    } else {
      write_row(s.out + r * s.padded, inverse_of_sum(sum_of[r]), p.head_dim, rows.out<T>(row));
      if (p.lse) *rows.lse(row) = lse_of(max_of[r], sum_of[r]);
    }
  }
}

template <class T>
void attention_decode(const AttentionParams& p, const AttentionWork& work, float* scratch) {
  const int64_t num_rows = work.row_end - work.row_begin;
  if (num_rows <= 1) {
    decode_rows<1, T>(p, work, scratch);
  } else if (num_rows <= 2) {
    decode_rows<2, T>(p, work, scratch);
  } else if (num_rows <= 4) {
    decode_rows<4, T>(p, work, scratch);
  } else {
    decode_rows<kDecodeRows, T>(p, work, scratch);
  }
}

}  // namespace
}  // namespace flashint8::cpu
