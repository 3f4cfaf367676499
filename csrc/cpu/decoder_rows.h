// The decoder's small operators, a token or a row at a time. fp32 inside, one rounding.
#pragma once

#include "flashint8/decoder.h"
#include "kernels.h"
#include "vector_math.h"

namespace flashint8::cpu {
namespace {

template <class T>
FLASHINT8_INLINE Vec load_n(const T* p, int64_t n) {
  return n == kLanes ? load(p) : load_partial(p, n);
}

template <class T>
FLASHINT8_INLINE void store_n(T* p, Vec v, int64_t n) {
  if (n == kLanes) {
    store(p, v);
  } else {
    store_partial(p, v, n);
  }
}

// y may be x.
template <class T>
void rotate_halves(const T* x, T* y, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t n = smaller(kLanes, half - i);
    const Vec c = load_n(cos + i, n), s = load_n(sin + i, n);
    const Vec a = load_n(x + i, n), b = load_n(x + half + i, n);
    store_n(y + i, sub(mul(a, c), mul(b, s)), n);
    store_n(y + half + i, add(mul(b, c), mul(a, s)), n);
  }
}

template <class T>
void rotate_pairs(const T* x, T* y, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t n = smaller(kLanes, half - i);
    const int64_t n0 = smaller(kLanes, 2 * n), n1 = 2 * n - n0;
    float from[2 * kLanes] = {}, to[2 * kLanes] = {};
    store(from, load_n(x + 2 * i, n0));
    if (n1 > 0) store(from + kLanes, load_n(x + 2 * i + n0, n1));
    for (int64_t j = 0; j < n; ++j) {
      const float a = from[2 * j], b = from[2 * j + 1], c = cos[i + j], s = sin[i + j];
      to[2 * j] = a * c - b * s;
      to[2 * j + 1] = b * c + a * s;
    }
    store_n(y + 2 * i, load(to), n0);
    if (n1 > 0) store_n(y + 2 * i + n0, load(to + kLanes), n1);
  }
}

template <class T>
void rope_append_tokens(const RopeAppendParams& p, int64_t begin, int64_t end) {
  const int64_t half = p.rotary_dim / 2;
  const auto rotate = p.interleaved ? rotate_pairs<T> : rotate_halves<T>;
  const auto copy_rest = [&](const T* from, T* to) {
    memcpy(to + p.rotary_dim, from + p.rotary_dim,
           static_cast<size_t>(p.head_dim - p.rotary_dim) * sizeof(T));
  };
  for (int64_t token = begin; token < end; ++token) {
    const int64_t b = token / p.seq_len, t = token % p.seq_len;
    const int64_t slot = p.positions[b * p.positions_stride] + t;
    const float* cos = nullptr;
    if (p.cos_sin != nullptr) {
      cos = p.cos_sin + larger(0, smaller(p.table_rows - 1, slot)) * p.cos_sin_stride;
      const T* q = static_cast<const T*>(p.q) + b * p.q_stride.batch + t * p.q_stride.seq;
      T* to_q = static_cast<T*>(p.q_out) + b * p.q_out_stride.batch + t * p.q_out_stride.seq;
      for (int64_t h = 0; h < p.num_heads; ++h) {
        rotate(q, to_q, cos, cos + half, half);
        if (p.q != p.q_out) copy_rest(q, to_q);
        q += p.q_stride.head;
        to_q += p.q_out_stride.head;
      }
    }
    if (slot < 0 || slot >= p.slots) continue;
    const T* k = static_cast<const T*>(p.k) + b * p.k_stride.batch + t * p.k_stride.seq;
    const T* v = static_cast<const T*>(p.v) + b * p.v_stride.batch + t * p.v_stride.seq;
    T* to_k = static_cast<T*>(p.k_cache) + b * p.k_cache_stride.batch + slot * p.k_cache_stride.seq;
    T* to_v = static_cast<T*>(p.v_cache) + b * p.v_cache_stride.batch + slot * p.v_cache_stride.seq;
    for (int64_t h = 0; h < p.num_kv_heads; ++h) {
      if (cos != nullptr) rotate(k, to_k, cos, cos + half, half);
      copy_rest(k, to_k);
      memcpy(to_v, v, static_cast<size_t>(p.head_dim) * sizeof(T));
      k += p.k_stride.head;
      v += p.v_stride.head;
      to_k += p.k_cache_stride.head;
      to_v += p.v_cache_stride.head;
    }
  }
}

template <class T>
void add_norm_rows(const AddNormParams& p, int64_t begin, int64_t end) {
  const auto count = static_cast<float>(p.columns);
  const T* weight = static_cast<const T*>(p.weight);
  const T* bias = static_cast<const T*>(p.bias);
  for (int64_t m = begin; m < end; ++m) {
    T* row = static_cast<T*>(p.residual) + x_row_offset(p.residual_rows, m);
    if (p.x != nullptr) {
      const T* x = static_cast<const T*>(p.x) + x_row_offset(p.x_rows, m);
      for (int64_t i = 0; i < p.columns; i += kLanes) {
        const int64_t n = smaller(kLanes, p.columns - i);
        store_n(row + i, add(load_n(row + i, n), load_n(x + i, n)), n);
      }
    }
    float mean = 0.0f;
    if (!p.rms) {
      Vec sum = zero();
      for (int64_t i = 0; i < p.columns; i += kLanes) {
        sum = add(sum, load_n(row + i, smaller(kLanes, p.columns - i)));
      }
      mean = sum_lanes(sum) / count;
    }
    float means[kLanes];  // loaded as the row is, so that lanes past its end stay 0
    store(means, set1(mean));
    Vec squares = zero();
    for (int64_t i = 0; i < p.columns; i += kLanes) {
      const int64_t n = smaller(kLanes, p.columns - i);
      const Vec centred = sub(load_n(row + i, n), load_n(means, n));
      squares = fma(centred, centred, squares);
    }
    const Vec inverse = set1(1.0f / __builtin_sqrtf(sum_lanes(squares) / count + p.eps));
    T* out = static_cast<T*>(p.out) + m * p.columns;
    for (int64_t i = 0; i < p.columns; i += kLanes) {
      const int64_t n = smaller(kLanes, p.columns - i);
      const Vec y = mul(sub(load_n(row + i, n), set1(mean)), inverse);
      const Vec b = bias != nullptr ? load_n(bias + i, n) : zero();
      store_n(out + i, fma(y, load_n(weight + i, n), b), n);
    }
  }
}

template <class T>
void silu_mul_rows(const SiluMulParams& p, int64_t begin, int64_t end) {
  for (int64_t m = begin; m < end; ++m) {
    const T* gate = static_cast<const T*>(p.gate_up) + x_row_offset(p.gate_up_rows, m);
    const T* up = gate + p.columns;
    T* out = static_cast<T*>(p.out) + m * p.columns;
    for (int64_t i = 0; i < p.columns; i += kLanes) {
      const int64_t n = smaller(kLanes, p.columns - i);
      store_n(out + i, mul(silu(load_n(gate + i, n)), load_n(up + i, n)), n);
    }
  }
}

FLASHINT8_INLINE int64_t clamp_index(int64_t i, int64_t count) {
  return larger(0, smaller(count - 1, i));
}

template <class T>
void embed_tokens(const EmbedParams& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / p.seq_len, t = i % p.seq_len;
    const int64_t token =
        clamp_index(p.tokens[b * p.token_stride_batch + t * p.token_stride_seq], p.vocabulary);
    const int8_t* row = p.weight + token * p.columns;
    const T* position = nullptr;
    if (p.position_weight != nullptr) {
      const int64_t place = clamp_index(p.positions[b * p.positions_stride] + t, p.num_positions);
      position = static_cast<const T*>(p.position_weight) + place * p.columns;
    }
    T* out = static_cast<T*>(p.out) + i * p.columns;
    const Vec scale = set1(p.weight_scale[token]);
    for (int64_t c = 0; c < p.columns; c += kLanes) {
      const int64_t n = smaller(kLanes, p.columns - c);
      const Vec add_to = position != nullptr ? load_n(position + c, n) : zero();
      store_n(out + c, fma(load_n(row + c, n), scale, add_to), n);
    }
  }
}

template <class T>
void argmax_rows(const ArgmaxParams& p, int64_t begin, int64_t end) {
  constexpr int64_t kPart = 64 * kLanes;
  for (int64_t m = begin; m < end; ++m) {
    const T* row = static_cast<const T*>(p.x) + m * p.x_stride;
    float best = -__builtin_inff();
    int64_t part = 0;
    for (int64_t i = 0; i < p.columns; i += kPart) {
      const int64_t stop = smaller(p.columns, i + kPart);
      Vec largest = set1(-__builtin_inff());
      int64_t c = i;
      // A NaN as the first operand leaves the second.
      for (; c + kLanes <= stop; c += kLanes) largest = max(load(row + c), largest);
      float top = max_lanes(largest);
      for (; c < stop; ++c) {
        float buffer[kLanes];
        store(buffer, load_partial(row + c, 1));
        top = buffer[0] > top ? buffer[0] : top;
      }
      if (top > best) {
        best = top;
        part = i;
      }
    }
    // The first of the part that holds it: the column itself.
    int64_t column = part;
    for (; column < smaller(p.columns, part + kPart); ++column) {
      float buffer[kLanes];
      store(buffer, load_partial(row + column, 1));
      if (buffer[0] == best) break;
    }
    p.out[m] = column < smaller(p.columns, part + kPart) ? column : 0;
    if (p.positions != nullptr) ++p.positions[m];
  }
}

}  // namespace
}  // namespace flashint8::cpu
