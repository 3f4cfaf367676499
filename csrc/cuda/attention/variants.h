// The instantiated prefill kernels: one table, read by the plan (which picks a row), by the
// launcher (which maps the row to its kernel) and by the kernel itself (as its template argument).
// Plain C++, no CUDA header.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flashint8 {

struct PrefillVariant {
  int head_dim;
  int block_m;  // queries of a block
  int block_n;  // keys of a tile in shared memory
  int chunk;    // keys of one softmax step
  int num_warps;
  int stages;      // tiles in the ring
  int min_blocks;  // blocks a multiprocessor is to hold: bounds the registers
  int key_groups;  // groups of warps that share a tile's keys
  // Taken while the grid has at most this many blocks a multiprocessor; else the next row of the
  // same head_dim is looked at. Smaller tiles finish short prompts sooner and waste less above the
  // diagonal, larger ones read keys less often. Measured: docs/performance.md.
  int max_blocks_per_sm;

  constexpr int threads() const { return 32 * num_warps; }
  constexpr int rows_per_warp() const { return block_m * key_groups / num_warps; }
  constexpr int tile_bytes() const { return block_n * head_dim * 2; }
  constexpr int query_bytes() const { return block_m * head_dim * 2; }
  // Queries, the ring, and after them the bounds of the block's and of each warp's keys.
  constexpr int bounds_offset() const { return query_bytes() + 2 * stages * tile_bytes(); }
  constexpr int shared_bytes() const { return bounds_offset() + 16 * (num_warps + 1); }
};

constexpr int kAnyGrid = 1 << 30;

// Every row fits the 99 KB that a block has on sm_86, sm_89 and sm_120. By head_dim, then block_m.
constexpr PrefillVariant kPrefillVariants[] = {
    // head_dim, block_m, block_n, chunk, num_warps, stages, min_blocks, key_groups,
    // max_blocks_per_sm
    {32, 64, 64, 64, 4, 2, 3, 1, kAnyGrid},  {64, 16, 128, 32, 4, 2, 2, 4, 1},
    {64, 32, 128, 64, 4, 2, 2, 2, 2},        {64, 64, 64, 64, 4, 2, 3, 1, 12},
    {64, 128, 64, 64, 4, 2, 2, 1, kAnyGrid}, {96, 64, 64, 64, 4, 2, 2, 1, kAnyGrid},
    {128, 16, 64, 16, 4, 2, 2, 4, 1},        {128, 32, 64, 32, 4, 2, 2, 2, 2},
    {128, 64, 64, 64, 4, 2, 2, 1, 8},        {128, 128, 64, 32, 4, 2, 2, 1, kAnyGrid},
    {256, 64, 32, 32, 4, 2, 1, 1, kAnyGrid},
};
constexpr size_t kNumPrefillVariants = sizeof(kPrefillVariants) / sizeof(kPrefillVariants[0]);

// The Hopper prefill kernel: warpgroups of 64 queries each, and one that brings tiles of keys.
struct Sm90PrefillTile {
  int head_dim;
  int block_m;             // queries of a block
  int block_n;             // keys of a tile
  int stages;              // tiles in the ring, of keys and of values
  int registers;           // of a thread that multiplies
  int producer_registers;  // of a thread of the other warpgroup
  // Taken where there are at least this many blocks of queries, in hundredths of a
  // multiprocessor's: fewer finish sooner in the portable kernel's smaller tiles. Measured:
  // docs/performance.md.
  int min_blocks_per_100_sms;

  constexpr int groups() const { return block_m / 64; }
  constexpr int threads() const { return 128 * (groups() + 1); }
  constexpr int query_bytes() const { return block_m * head_dim * 2; }
  constexpr int tile_bytes() const { return block_n * head_dim * 2; }
  // Queries, the output on its way out, the ring, and the barriers: of the queries, of a tile that
  // is rewritten, and of each stage four.
  constexpr int barriers_offset() const { return 2 * query_bytes() + 2 * stages * tile_bytes(); }
  constexpr int shared_bytes() const { return barriers_offset() + 8 * (3 + 4 * stages); }
};

constexpr Sm90PrefillTile kSm90PrefillTiles[] = {
    {64, 192, 128, 4, 160, 32, 100},
    {128, 128, 128, 2, 240, 24, 100},
};
constexpr size_t kNumSm90PrefillTiles = sizeof(kSm90PrefillTiles) / sizeof(kSm90PrefillTiles[0]);
// Keys up to which blocks stay on the chip and take several pieces of work each, so that one
// piece's first tiles come while the one before ends.
constexpr int64_t kSm90StayUpTo = 4096;

// The decode kernel: its head_dim sizes, and the keys of one warp's tile.
constexpr int kDecodeHeadDims[] = {64, 128, 256};
constexpr int kDecodeRows = 16;
constexpr int kDecodeStages = 3;
constexpr int kDecodeMaxWarps = 8;
constexpr int decode_keys(int head_dim) { return head_dim <= 64 ? 32 : 16; }
constexpr int decode_warp_bytes(int head_dim) {
  return kDecodeStages * 2 * decode_keys(head_dim) * head_dim * 2;
}
// A ring for each warp, each warp's softmax states, the bounds of the block's keys, and the states
// of the rows, merged.
constexpr int decode_shared_bytes(int head_dim, int num_warps) {
  return num_warps * (decode_warp_bytes(head_dim) + kDecodeRows * 8) + 32;
}
// A token on its way into the cache: a row of keys, one of values, and its place.
constexpr int decode_token_bytes(int head_dim) { return 2 * head_dim * 2 + 16; }

}  // namespace flashint8
