// What the AMX kernels share: tile shapes, the columns of x as int8 planes.
#pragma once

#include "int_dot.h"
#include "kernels.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int64_t kTileRows = 16;     // rows of W in a tile
constexpr int64_t kTileBytes = 64;    // of one row in a tile: 32 bfloat16 or 64 int8
constexpr int64_t kPlaneRows = 8;     // rows of x whose high and low planes fill the 16 columns of a tile

struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {};
  uint8_t rows[16] = {};
};

// All eight tiles have 16 rows; `columns` of 4 bytes in tiles of sums (0..3) and of x (6, 7), 64 bytes of W in 4, 5.
inline void configure_tiles(int64_t columns) {
  alignas(64) TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.rows[tile] = 16;
    config.bytes_per_row[tile] = static_cast<uint16_t>(tile == 4 || tile == 5 ? kTileBytes : 4 * columns);
  }
  asm volatile("" : : "m"(config));  // the intrinsic names 8 bytes of it, the compiler may drop the others
  _tile_loadconfig(&config);
}

// The intrinsics do not say that tile loads and stores touch memory; without this the compiler may move other accesses of
// the same memory across them.
inline void order_tiles() { asm volatile("" ::: "memory"); }

// A tile that is not in the first-level cache is waited for line by line; this fetches its 16, `stride` bytes apart.
inline void fetch_tile(const void* tile, int64_t stride = kTileBytes) {
  for (int64_t i = 0; i < kTileRows; ++i) prefetch(static_cast<const char*>(tile) + i * stride);
}

// Two vectors of floats as bfloat16, one behind the other; below 2^-126 zero.
inline __m512i round_pair(vf low, vf high) { return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)); }

// [2][16] bfloat16 → [16][2], as rows of pairs of depths meet in a tile.
inline __m512i interleave(__m512i pair) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, pair);
}

// Sums of two blocks of 16 by two in tiles 0 to 3, of one by two in 0 and 1: tile 1 is `second` elements behind tile 0
// in memory, the second pair `pair` elements behind the first. With one row of blocks tiles 1 and 3 are left alone.
template <int kBlocks, int kRows = 2>
inline void zero_sums() {
  order_tiles();
  _tile_zero(0);
  if constexpr (kRows == 2) _tile_zero(1);
  if constexpr (kBlocks == 2) _tile_zero(2);
  if constexpr (kBlocks == 2 && kRows == 2) _tile_zero(3);
}

template <int kBlocks, int kRows = 2, class T>
inline void load_sums(const T* sums, int64_t second, int64_t pair) {
  order_tiles();
  _tile_loadd(0, sums, 64);
  if constexpr (kRows == 2) _tile_loadd(1, sums + second, 64);
  if constexpr (kBlocks == 2) _tile_loadd(2, sums + pair, 64);
  if constexpr (kBlocks == 2 && kRows == 2) _tile_loadd(3, sums + pair + second, 64);
}

template <int kBlocks, int kRows = 2, class T>
inline void store_sums(T* sums, int64_t second, int64_t pair) {
  _tile_stored(0, sums, 64);
  if constexpr (kRows == 2) _tile_stored(1, sums + second, 64);
  if constexpr (kBlocks == 2) _tile_stored(2, sums + pair, 64);
  if constexpr (kBlocks == 2 && kRows == 2) _tile_stored(3, sums + pair + second, 64);
  order_tiles();
}

// Up to 8 rows of x as tiles of 64 bytes along k: planes[k / 4][16][4], columns 0..7 high, 8..15 low, zero where there
// is no row; steps[8]. k is a multiple of 64.
template <class T>
inline void plane_tiles(const T* x, int64_t stride, int64_t num_rows, int64_t k, int8_t* planes, float* steps) {
  float inverse[kPlaneRows] = {};
  for (int64_t t = 0; t < kPlaneRows; ++t) {
    steps[t] = t < num_rows ? quantum(x + t * stride, k) : 0.0f;
    inverse[t] = inverse_of(steps[t]);
  }
  __m512i words[16];
  for (auto& w : words) w = _mm512_setzero_si512();
  for (int64_t i = 0; i < k; i += 64) {
    for (int64_t t = 0; t < num_rows; ++t)
      split_columns(x + t * stride + i, set1(inverse[t]), &words[t], &words[t + kPlaneRows]);
    __m512i columns[16];
    for (int64_t j = 0; j < 16; ++j) columns[j] = words[j];
    transpose_words(columns);
    for (int64_t j = 0; j < 16; ++j) _mm512_store_si512(planes + (i + 4 * word_of_split(j)) * 16, columns[j]);
  }
}

}  // namespace antiphon::ANTIPHON_ISA
