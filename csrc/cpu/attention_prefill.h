// Attention for many rows: FlashAttention's blocked online softmax (Dao et al. 2022, Milakov and
// Gimelshein 2018), one thread a piece.
//
// A piece holds up to kBlocks lane blocks of kBlockRows rows. For each block of kBlockKeys keys, K
// and V are packed once (to fp32, or to bf16 pairs), and every lane block then does
//   S[key][row] = K Q^T      Q^T packed once: [dim][row]
//   P = exp2(S - max)        row max, sum and rescaling are lane-wise
//   O[dim][row] = O * rescale + V^T P
// The two tiles, S and one lane block (about 16 KB each at head_dim 64) are what a core's L1 and L2
// hold while it works.
#pragma once

#include "attention_rows.h"
#include "tile_product.h"

namespace flashint8::cpu {
namespace {

constexpr int64_t kBlockRows = kLanes * kTileVectors;
constexpr int64_t kBlocks = 4;
constexpr int64_t kBlockKeys = 64;

// One lane block: its part of the scratch, and which keys its rows see.
struct LaneBlock {
  float* q;        // [cells of head_dim][kBlockRows]
  float* out;      // [head_dim, padded][kBlockRows]
  float* row_max;  // [kBlockRows] each, from here
  float* row_sum;
  int64_t* first;  // keys each row sees, counted from the piece's key_begin
  int64_t* last;
  int64_t row_begin;
  int64_t row_count;
  int64_t vectors;    // that hold rows
  int64_t all_first;  // every row's keys lie in [all_first, all_last)
  int64_t all_last;

  // The block without its first v vectors of rows.
  LaneBlock from_vector(int64_t v) const {
    LaneBlock rest = *this;
    rest.q += v * kLanes;
    rest.out += v * kLanes;
    rest.row_max += v * kLanes;
    rest.row_sum += v * kLanes;
    rest.first += v * kLanes;
    rest.last += v * kLanes;
    rest.vectors -= v;
    return rest;
  }
  // Bounds grow with the row, so that a vector's extreme ones are its first and last lane's.
  int64_t vector_last(int64_t v) const { return last[v * kLanes + kLanes - 1]; }
  bool sees_all(int64_t v, int64_t begin, int64_t end) const {
    return first[v * kLanes + kLanes - 1] <= begin && end <= last[v * kLanes];
  }
};

template <class Dot>
struct PrefillLayout {
  int64_t head_dim;
  int64_t steps;   // cells of a row of q or k that count
  int64_t cells;   // and with padding
  int64_t dims;    // rows of out, with padding
  int64_t k_tile;  // sizes in floats
  int64_t v_tile;
  int64_t scores;
  int64_t block;

  explicit PrefillLayout(int64_t head_dim) : head_dim(head_dim) {
    steps = (head_dim + Dot::kPerCell - 1) / Dot::kPerCell;
    cells = round_up(steps, kLanes);
    dims = round_up(head_dim, kLanes * Dot::kPerCell);
    k_tile = (kBlockKeys + kLanes) * cells;
    v_tile = (kBlockKeys / Dot::kPerCell + kLanes) * dims;
    scores = (kBlockKeys + kLanes) * kBlockRows;
    block = (cells + dims + 2 + 2 * 2) * kBlockRows;  // first and last are int64
  }
  int64_t total() const { return k_tile + v_tile + scores + kBlocks * block; }
};

// Keys [0, count) as rows of cells; rows up to a multiple of kLanes, and dims past head_dim, are 0.
template <class Dot, class T>
void pack_keys(const T* keys, int64_t stride, int64_t count, int64_t head_dim, float* tile,
               int64_t ld) {
  const int64_t padded = round_up(count, kLanes);
  const int64_t per_vector = kLanes * Dot::kPerCell;
  for (int64_t n = 0; n < padded; ++n) {
    const T* key = keys + n * stride;
    float* to = tile + n * ld;
    for (int64_t d = 0; d < head_dim; d += per_vector, to += kLanes) {
      const int64_t valid = n < count ? smaller(per_vector, head_dim - d) : 0;
      if constexpr (Dot::kPerCell == 1) {
        store(to, valid == kLanes ? load(key + d) : valid ? load_partial(key + d, valid) : zero());
      } else {
#ifdef FLASHINT8_HAS_BF16_DOT
        store(to, valid ? load_bf16_pairs(reinterpret_cast<const BF16*>(key) + d, valid) : zero());
#endif
      }
    }
  }
}

// Values [0, count): with fp32 cells as rows; with bf16 cells (key 2i, key 2i + 1) of each dim.
template <class Dot, class T>
void pack_values(const T* values, int64_t stride, int64_t count, int64_t head_dim, float* tile,
                 int64_t ld) {
  if constexpr (Dot::kPerCell == 1) {
    pack_keys<Dot>(values, stride, count, head_dim, tile, ld);
  } else {
#ifdef FLASHINT8_HAS_BF16_DOT
    for (int64_t n = 0; n < count; n += 2) {
      const BF16* even = reinterpret_cast<const BF16*>(values + n * stride);
      const BF16* odd = even + stride;
      float* to = tile + n / 2 * ld;
      for (int64_t d = 0; d < head_dim; d += 2 * kLanes) {
        const int64_t valid = smaller(2 * kLanes, head_dim - d);
        Vec low, high;
        interleave_bf16(load_bf16_pairs(even + d, valid),
                        n + 1 < count ? load_bf16_pairs(odd + d, valid) : zero(), &low, &high);
        store(to + d, low);
        store(to + d + kLanes, high);
      }
    }
#endif
  }
}

// Turns the scores of `count` keys into weights, updates row_max and row_sum, and leaves in
// `rescale` what the sums so far must be multiplied with.
template <class Dot, int kVectors>
void softmax_block(const LaneBlock& block, float* scores, int64_t count, float factor,
                   Vec* rescale) {
  for (int v = 0; v < kVectors; ++v) {
    float* s = scores + v * kLanes;
    Vec largest = set1(-kInfinity);
    for (int64_t n = 0; n < count; ++n) largest = max(load(s + n * kBlockRows), largest);
    const Vec old_max = load(block.row_max + v * kLanes);
    const Vec new_max = max(mul(largest, set1(factor)), old_max);
    const Vec base = finite_max(new_max);
    store(block.row_max + v * kLanes, new_max);
    rescale[v] = exp2(sub(old_max, base));
    Vec sum = mul(load(block.row_sum + v * kLanes), rescale[v]);
    const Vec minus_base = sub(zero(), base);
    if constexpr (Dot::kPerCell == 1) {
      for (int64_t n = 0; n < count; ++n) {
        const Vec weight = exp2(fma(load(s + n * kBlockRows), set1(factor), minus_base));
        sum = add(sum, weight);
        store(s + n * kBlockRows, weight);
      }
    } else {
#ifdef FLASHINT8_HAS_BF16_DOT
      for (int64_t n = 0; n < count; n += 2) {
        const Vec even = exp2(fma(load(s + n * kBlockRows), set1(factor), minus_base));
        Vec odd = zero();
        if (n + 1 < count) {
          odd = exp2(fma(load(s + (n + 1) * kBlockRows), set1(factor), minus_base));
        }
        sum = add(sum, add(even, odd));
        store(s + n / 2 * kBlockRows, pair_as_bf16(even, odd));
      }
#endif
    }
    store(block.row_sum + v * kLanes, sum);
  }
}

// Bounds counted from a tile, as floats; how far outside of the tile they are does not matter.
FLASHINT8_INLINE Vec relative_to(const int64_t* bounds, int64_t tile_key) {
  float relative[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    relative[i] = static_cast<float>(larger(-1, smaller(kBlockKeys, bounds[i] - tile_key)));
  }
  return load(relative);
}

// Keys [begin, end) of the packed tiles, `tile_key` being the tile's first key counted from the
// piece's. begin is even. kVectors is block.vectors.
template <class Dot, int kVectors>
void attend(const LaneBlock& block, const PrefillLayout<Dot>& layout, const ScoreScale& scale,
            const float* k_tile, const float* v_tile, float* scores, int64_t tile_key,
            int64_t begin, int64_t end) {
  const int64_t count = end - begin;
  panel_product<Dot, kVectors, Order::kRowMajor, Start::kZero>(
      k_tile + begin * layout.cells, layout.cells, block.q, kBlockRows, scores, kBlockRows, count,
      layout.steps);
  if (scale.cap_out > 0.0f) {
    for (int64_t n = 0; n < count; ++n) {
      for (int v = 0; v < kVectors; ++v) {
        float* s = scores + n * kBlockRows + v * kLanes;
        store(s, capped(load(s), scale));
      }
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    if (block.sees_all(v, tile_key + begin, tile_key + end)) continue;
    const Vec first = relative_to(block.first + v * kLanes, tile_key);
    const Vec last = relative_to(block.last + v * kLanes, tile_key);
    for (int64_t n = 0; n < count; ++n) {
      float* s = scores + n * kBlockRows + v * kLanes;
      store(s, keep_between(load(s), set1(static_cast<float>(begin + n)), first, last));
    }
  }
  Vec rescale[kVectors];
  softmax_block<Dot, kVectors>(block, scores, count, scale.factor, rescale);
  panel_product<Dot, kVectors, Order::kStepMajor, Start::kRescale>(
      v_tile + begin / Dot::kPerCell * layout.dims, layout.dims, scores, kBlockRows, block.out,
      kBlockRows, layout.head_dim, (count + Dot::kPerCell - 1) / Dot::kPerCell, rescale);
}

// The keys of a tile, for each vector of rows only as far as its rows see. Across the diagonal of
// causal attention the tile becomes a few steps, each with fewer rows than the one before.
template <class Dot>
void attend_block(const LaneBlock& block, const PrefillLayout<Dot>& layout, const ScoreScale& scale,
                  const float* k_tile, const float* v_tile, float* scores, int64_t tile_key,
                  int64_t begin, int64_t end) {
  constexpr int64_t kStepKeys = 16 * Dot::kPerCell;  // fewer are not worth a step
  int64_t v = 0;
  while (begin < end && v < block.vectors) {
    if (block.vector_last(v) - tile_key <= begin) {
      ++v;
      continue;
    }
    int64_t next = v;
    int64_t step_end = begin;
    while (next < block.vectors && step_end < end && step_end - begin < kStepKeys) {
      step_end = smaller(end, round_up(block.vector_last(next++) - tile_key, 2));
    }
    const LaneBlock rest = block.from_vector(v);
    const auto run = rest.vectors == 1   ? attend<Dot, 1>
                     : rest.vectors == 2 ? attend<Dot, 2>
                     : rest.vectors == 3 ? attend<Dot, 3>
                                         : attend<Dot, kTileVectors>;
    run(rest, layout, scale, k_tile, v_tile, scores, tile_key, begin, step_end);
    begin = step_end;
    v = next;
  }
}

template <class Dot, class T>
void begin_block(const Rows& rows, const PrefillLayout<Dot>& layout, const ScoreScale& scale,
                 LaneBlock* block) {
  const int64_t key_begin = rows.work.key_begin;
  const int64_t last_row = block->row_begin + block->row_count - 1;
  block->vectors = round_up(block->row_count, kLanes) / kLanes;
  block->all_first = rows.first(block->row_begin) - key_begin;
  block->all_last = rows.last(last_row) - key_begin;
  for (int64_t lane = 0; lane < block->vectors * kLanes; lane += kLanes) {
    const T* q[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      const bool exists = lane + i < block->row_count;
      const int64_t r = block->row_begin + lane + i;
      q[i] = exists ? rows.q<T>(r) : nullptr;
      block->row_max[lane + i] = -kInfinity;
      block->row_sum[lane + i] = 0.0f;
      block->first[lane + i] = rows.first(exists ? r : last_row) - key_begin;
      block->last[lane + i] = rows.last(exists ? r : last_row) - key_begin;
    }
    pack_lanes<Dot>(q, rows.p.head_dim, scale.negate_q, block->q + lane, kBlockRows);
  }
  memset(block->out, 0, static_cast<size_t>(layout.dims * kBlockRows) * sizeof(float));
}

template <class Dot, class T>
void finish_block(const Rows& rows, const LaneBlock& block) {
  const AttentionParams& p = rows.p;
  for (int64_t lane = 0; lane < block.row_count; lane += kLanes) {
    const int64_t count = smaller(kLanes, block.row_count - lane);
    float inverse[kLanes];
    T* out[kLanes];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t r = block.row_begin + lane + i;
      const float row_max = block.row_max[lane + i];
      const float row_sum = block.row_sum[lane + i];
      if (rows.work.partial) {
        float* partial = rows.work.partial + (r - rows.work.row_begin) * partial_size(p.head_dim);
        partial[p.head_dim] = row_max;
        partial[p.head_dim + 1] = row_sum;
      } else {
        inverse[i] = inverse_of_sum(row_sum);
        out[i] = rows.out<T>(r);
        if (p.lse) *rows.lse(r) = lse_of(row_max, row_sum);
      }
    }
    for (int64_t d = 0; d < p.head_dim; d += kLanes) {
      const int64_t valid = smaller(kLanes, p.head_dim - d);
      Vec t[kLanes];
      for (int i = 0; i < kLanes; ++i) t[i] = load(block.out + (d + i) * kBlockRows + lane);
      transpose(t);
      for (int64_t i = 0; i < count; ++i) {
        if (rows.work.partial) {
          const int64_t r = block.row_begin + lane + i - rows.work.row_begin;
          store_partial(rows.work.partial + r * partial_size(p.head_dim) + d, t[i], valid);
        } else if (valid == kLanes) {
          store(out[i] + d, mul(t[i], set1(inverse[i])));
        } else {
          store_partial(out[i] + d, mul(t[i], set1(inverse[i])), valid);
        }
      }
    }
  }
}

template <class Dot, class T>
void attention_prefill(const AttentionParams& p, const AttentionWork& work, float* scratch) {
  const Rows rows{p, work};
  const ScoreScale scale(p);
  const PrefillLayout<Dot> layout(p.head_dim);
  float* k_tile = scratch;
  float* v_tile = k_tile + layout.k_tile;
  float* scores = v_tile + layout.v_tile;
  LaneBlock blocks[kBlocks];
  int64_t num_blocks = 0;
  int64_t key_first = work.key_end - work.key_begin, key_last = 0;
  for (int64_t r = work.row_begin; r < work.row_end; r += kBlockRows, ++num_blocks) {
    LaneBlock& block = blocks[num_blocks];
    block.q = scores + layout.scores + num_blocks * layout.block;
    block.out = block.q + layout.cells * kBlockRows;
    block.row_max = block.out + layout.dims * kBlockRows;
    block.row_sum = block.row_max + kBlockRows;
    block.first = reinterpret_cast<int64_t*>(block.row_sum + kBlockRows);
    block.last = block.first + kBlockRows;
    block.row_begin = r;
    block.row_count = smaller(kBlockRows, work.row_end - r);
    begin_block<Dot, T>(rows, layout, scale, &block);
    key_first = smaller(key_first, block.all_first);
    key_last = larger(key_last, block.all_last);
  }
  const T* keys = rows.keys<T>() + work.key_begin * p.k_stride.seq;
  const T* values = rows.values<T>() + work.key_begin * p.v_stride.seq;
  for (int64_t key = key_first; key < key_last; key += kBlockKeys) {
    const int64_t count = smaller(kBlockKeys, key_last - key);
    pack_keys<Dot>(keys + key * p.k_stride.seq, p.k_stride.seq, count, p.head_dim, k_tile,
                   layout.cells);
    pack_values<Dot>(values + key * p.v_stride.seq, p.v_stride.seq, count, p.head_dim, v_tile,
                     layout.dims);
    for (int64_t b = 0; b < num_blocks; ++b) {
      const LaneBlock& block = blocks[b];
      const int64_t begin = larger(0, block.all_first - key) & ~int64_t{1};
      const int64_t end = smaller(count, block.all_last - key);
      if (begin >= end) continue;
      attend_block<Dot>(block, layout, scale, k_tile, v_tile, scores, key, begin, end);
    }
  }
  for (int64_t b = 0; b < num_blocks; ++b) finish_block<Dot, T>(rows, blocks[b]);
}

}  // namespace
}  // namespace flashint8::cpu
