// The two products of attention_decode.h. Each reads its rows of the cache one after the other,
// every byte in the order of its address the first time: memory then comes as fast as a plain sum
// reads it, and at half of that or less where several rows are read side by side.
//
// A row is taken in chunks of 2 * kLanes elements. Those of bf16 are loaded at once and split into
// the elements at even and at odd places, an instruction each.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace flashint8::cpu {
namespace {

constexpr int64_t kChunk = 2 * kLanes;  // elements

// Where many rows share a key, a core computes for longer than it sees ahead: what is to come is
// then asked into L2. With fewer rows the hardware's own prefetching is as fast or faster.
template <int kRows>
constexpr bool kAsksAhead = kRows > 2;
constexpr int64_t kDecodeAhead = 8 << 10;  // bytes

template <class T>
FLASHINT8_INLINE void ask_ahead(const T* row, int64_t elements) {
  constexpr int64_t kPerLine = kCacheLine / static_cast<int64_t>(sizeof(T));
  for (int64_t i = 0; i < elements; i += kPerLine) prefetch(row + i, kDecodeAhead);
}

template <class T>
FLASHINT8_INLINE void load_chunk(const T* p, Vec* first, Vec* second) {
  *first = load(p);
  *second = load(p + kLanes);
}
FLASHINT8_INLINE void load_chunk(const BF16* p, Vec* first, Vec* second) {
  load_even_odd(p, first, second);
}
// n elements, n < kChunk, in order for every type, and zeros behind them.
template <class T>
FLASHINT8_INLINE void load_chunk_partial(const T* p, int64_t n, Vec* first, Vec* second) {
  *first = load_partial(p, smaller(n, kLanes));
  *second = n > kLanes ? load_partial(p + kLanes, n - kLanes) : zero();
}
// Puts the whole chunks of a row of fp32 that came from load_chunk of a T in order.
template <class T>
void order_chunks(float* row, int64_t head_dim) {
  if constexpr (std::is_same_v<T, BF16>) {
    for (int64_t d = 0; d + kChunk <= head_dim; d += kChunk) {
      Vec low, high;
      interleave(load(row + d), load(row + d + kLanes), &low, &high);
      store(row + d, low);
      store(row + d + kLanes, high);
    }
  }
}

// A chunk of a key, and its product with a chunk of a query: kQuery floats, from pack_query.
template <class T>
struct KeyChunk {
  static constexpr int64_t kQuery = kChunk;
  Vec first, second;

  FLASHINT8_INLINE KeyChunk(const T* p, int64_t n) {
    if (n < kChunk) {
      load_chunk_partial(p, n, &first, &second);
    } else {
      load_chunk(p, &first, &second);
    }
  }
  FLASHINT8_INLINE Vec add_product(Vec sum, const float* query) const {
    return fma(second, load(query + kLanes), fma(first, load(query), sum));
  }
  static void pack_query(const T* q, int64_t n, bool negate, float* query) {
    const KeyChunk x(q, n);
    store(query, negate ? sub(zero(), x.first) : x.first);
    store(query + kLanes, negate ? sub(zero(), x.second) : x.second);
  }
};

#ifdef FLASHINT8_HAS_BF16_DOT
// The dot product of pairs takes both as they are; its products are exact, its sums are fp32.
template <>
struct KeyChunk<BF16> {
  static constexpr int64_t kQuery = kLanes;
  Vec pairs;

  FLASHINT8_INLINE KeyChunk(const BF16* p, int64_t n) : pairs(load_bf16_pairs(p, n)) {}
  FLASHINT8_INLINE Vec add_product(Vec sum, const float* query) const {
    return bf16_dot(sum, pairs, load(query));
  }
  static void pack_query(const BF16* q, int64_t n, bool negate, float* query) {
    const Vec x = load_bf16_pairs(q, n);
    store(query, negate ? negate_bf16_pairs(x) : x);
  }
};
#endif

// scores[n][row] = query[row] . keys[n], for count keys; scores up to a whole vector are written
// too. queries: [chunk][row][KeyChunk<T>::kQuery].
template <int kRows, class T>
void decode_scores(const T* keys, int64_t stride, int64_t count, int64_t head_dim,
                   const float* queries, float* scores) {
  constexpr int kKeys = kLanes / kRows;
  constexpr int64_t kQuery = KeyChunk<T>::kQuery;
  const int64_t whole = head_dim / kChunk * kChunk;
  for (int64_t n = 0; n < count; n += kKeys) {
    Vec sum[kLanes];
    FLASHINT8_UNROLL
    for (int j = 0; j < kKeys; ++j) {
      const T* key = keys + smaller(n + j, count - 1) * stride;
      if constexpr (kAsksAhead<kRows>) ask_ahead(key, head_dim);
      const float* query = queries;
      Vec* of_key = sum + j * kRows;
      FLASHINT8_UNROLL
      for (int r = 0; r < kRows; ++r) of_key[r] = zero();
      for (int64_t d = 0; d < whole; d += kChunk, query += kRows * kQuery) {
        const KeyChunk<T> x(key + d, kChunk);
        FLASHINT8_UNROLL
        for (int r = 0; r < kRows; ++r) of_key[r] = x.add_product(of_key[r], query + r * kQuery);
      }
      if (whole < head_dim) {
        const KeyChunk<T> x(key + whole, head_dim - whole);
        FLASHINT8_UNROLL
        for (int r = 0; r < kRows; ++r) of_key[r] = x.add_product(of_key[r], query + r * kQuery);
      }
    }
    store(scores + n * kRows, sum_rows(sum));
  }
}

// kChunks chunks (one, where it is partial) of kOutRows rows: out[row] += weights * values. Each
// key has kRows weights, rows of out are ld floats apart, `valid` elements of a partial chunk
// exist.
template <int kRows, int kOutRows, int kChunks, bool kPartial, class T>
FLASHINT8_INLINE void add_values(const T* values, int64_t stride, int64_t count, int64_t valid,
                                 const float* weights, float* out, int64_t ld, bool first_rows) {
  const bool ask = kAsksAhead<kRows> && first_rows;
  Vec sum[kOutRows][2 * kChunks];
  FLASHINT8_UNROLL
  for (int r = 0; r < kOutRows; ++r) {
    FLASHINT8_UNROLL
    for (int v = 0; v < 2 * kChunks; ++v) sum[r][v] = load(out + r * ld + v * kLanes);
  }
  for (int64_t n = 0; n < count; ++n, values += stride, weights += kRows) {
    if (ask) ask_ahead(values, kPartial ? valid : kChunks * kChunk);
    Vec weight[kOutRows];
    FLASHINT8_UNROLL
    for (int r = 0; r < kOutRows; ++r) weight[r] = set1(weights[r]);
    FLASHINT8_UNROLL
    for (int c = 0; c < kChunks; ++c) {
      Vec first, second;
      if constexpr (kPartial) {
        load_chunk_partial(values, valid, &first, &second);
      } else {
        load_chunk(values + c * kChunk, &first, &second);
      }
      FLASHINT8_UNROLL
      for (int r = 0; r < kOutRows; ++r) {
        sum[r][2 * c] = fma(first, weight[r], sum[r][2 * c]);
        sum[r][2 * c + 1] = fma(second, weight[r], sum[r][2 * c + 1]);
      }
    }
  }
  FLASHINT8_UNROLL
  for (int r = 0; r < kOutRows; ++r) {
    FLASHINT8_UNROLL
    for (int v = 0; v < 2 * kChunks; ++v) store(out + r * ld + v * kLanes, sum[r][v]);
  }
}

constexpr int64_t kValueKeys = 16;                 // so that their values stay in L1
constexpr int kValueSums = kLanes == 16 ? 16 : 8;  // registers for sums

// The chunks from d on, kChunks at a time, for all kRows rows; returns where it stopped.
template <int kRows, int kChunks, class T>
FLASHINT8_INLINE int64_t add_chunks(const T* values, int64_t stride, int64_t count, int64_t d,
                                    int64_t head_dim, const float* weights, float* out,
                                    int64_t ld) {
  constexpr int kOutRows = static_cast<int>(smaller(kRows, kValueSums / (2 * kChunks)));
  for (; d + kChunks * kChunk <= head_dim; d += kChunks * kChunk) {
    for (int r = 0; r < kRows; r += kOutRows) {
      add_values<kRows, kOutRows, kChunks, false>(values + d, stride, count, 0, weights + r,
                                                  out + r * ld + d, ld, r == 0);
    }
  }
  return d;
}

// out[row] += weights[n][row] * values[n], for count keys and kRows rows of ld floats. The whole
// chunks of out are in load_chunk's order.
template <int kRows, class T>
void decode_values(const T* values, int64_t stride, int64_t count, int64_t head_dim,
                   const float* weights, float* out, int64_t ld) {
  // Whole rows at once up to head_dim 128, unless they are asked for ahead anyway.
  constexpr int kMany = kLanes == 16 && !kAsksAhead<kRows> ? 4 : 2;
  constexpr int kFewRows = static_cast<int>(smaller(kRows, kValueSums / 2));
  for (int64_t n = 0; n < count; n += kValueKeys) {
    const int64_t keys = smaller(kValueKeys, count - n);
    int64_t d = add_chunks<kRows, kMany>(values, stride, keys, 0, head_dim, weights, out, ld);
    d = add_chunks<kRows, 2>(values, stride, keys, d, head_dim, weights, out, ld);
    d = add_chunks<kRows, 1>(values, stride, keys, d, head_dim, weights, out, ld);
    for (int r = 0; d < head_dim && r < kRows; r += kFewRows) {
      add_values<kRows, kFewRows, 1, true>(values + d, stride, keys, head_dim - d, weights + r,
                                           out + r * ld + d, ld, r == 0);
    }
    values += kValueKeys * stride;
    weights += kValueKeys * kRows;
  }
}

}  // namespace
}  // namespace flashint8::cpu
