// Rows of x as tiles of int8 planes (int_dot.h) for the wide quantised kernels on AMX, and what those kernels share.
//
// A block of 16 rows is two tiles for every 64 columns, [k / 64][high, low][16 words of 4 columns][16 rows][4]: with a
// tile of 16 rows of W each gives 16 x 16 sums, and the high and the low sum of a row lie in the same lane of two
// vectors. Of a last block of up to 8 rows both planes fill one tile, as in tiles.h: [k / 64][16][8 high, 8 low][4].
#pragma once

#include "tiles.h"
#include "weights_ahead.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int64_t kPlaneDepth = 64;                    // columns of a tile
constexpr int64_t kTileSize = kTileRows * kTileBytes;  // bytes
constexpr int64_t kTileSums = kTileRows * kTileRows;   // products of a tile of W and a tile of x

// Tiles of `rows` rows of x for every 64 columns.
inline int64_t plane_tiles_of(int64_t rows) { return rows > kPlaneRows ? 2 : 1; }

// 64 columns of 16 rows of a plane, as split_columns leaves them, as a tile.
inline void store_tile(const __m512i (&rows)[kTileRows], int8_t* tile) {
  __m512i words[kTileRows];
  for (int64_t j = 0; j < kTileRows; ++j) words[j] = rows[j];
  transpose_words(words);
  for (int64_t j = 0; j < kTileRows; ++j) _mm512_store_si512(tile + word_of_split(j) * kTileBytes, words[j]);
}

// Up to 16 rows of x as a block; steps[16], zero where there is no row.
template <class T>
inline void pack_planes(const T* x, int64_t stride, int64_t rows, int64_t k, int8_t* out, float* steps) {
  for (int64_t t = rows; t < kTileRows; ++t) steps[t] = 0.0f;
  if (plane_tiles_of(rows) == 1) return plane_tiles(x, stride, rows, k, out, steps);
  float inverse[kTileRows] = {};
  for (int64_t t = 0; t < rows; ++t) {
    steps[t] = quantum(x + t * stride, k);
    inverse[t] = inverse_of(steps[t]);
  }
  __m512i high[kTileRows], low[kTileRows];
  for (int64_t t = rows; t < kTileRows; ++t) high[t] = low[t] = _mm512_setzero_si512();
  for (int64_t i = 0; i < k; i += kPlaneDepth, out += 2 * kTileSize) {
    for (int64_t t = 0; t < rows; ++t) split_columns(x + t * stride + i, set1(inverse[t]), &high[t], &low[t]);
    store_tile(high, out);
    store_tile(low, out + kTileSize);
  }
}

// A branch of a wide quantised linear.
template <class T, class Weight, class Scale>
struct PlaneProblem {
  const int8_t* planes;  // blocks of rows of x
  const float* steps;
  const Weight* w;
  const Scale* scale;
  const T* bias;         // or null
  T* out;                // [num_rows, n]
  int64_t num_rows, n, k;

  int64_t blocks() const { return (num_rows + kTileRows - 1) / kTileRows; }
  int64_t rows_of(int64_t block) const { return min64(kTileRows, num_rows - block * kTileRows); }
  const int8_t* block(int64_t b) const { return planes + b * 2 * kTileRows * k; }
};

// A panel of W: columns [n, n + columns) of the result of a branch; none if columns is 0.
struct Panel {
  int64_t branch, n, columns;
};

// out[t][0, columns) of a block of x from 16 vectors with a lane per row of x, one for each output.
template <class T>
inline void store_outputs(vf (&of_output)[16], int64_t rows, int64_t columns, T* out, int64_t out_stride) {
  __m512i v[16];
  for (int r = 0; r < 16; ++r) v[r] = _mm512_castps_si512(of_output[r]);
  transpose_words(v);
  for (int64_t t = 0; t < rows; ++t) store_upto(out + t * out_stride, _mm512_castsi512_ps(v[t]), columns);
}

}  // namespace antiphon::ANTIPHON_ISA
