// bfloat16 skinny linear on AMX tiles; included by linear.cpp where the instruction set has them.
//
// A tile of 16 rows of W by 32 columns, straight from its row-major memory, meets the same 32 columns of all rows of x
// (at most 16), interleaved in pairs: x_pairs[k / 2][t][2]. One accumulator tile [16 rows of W][rows of x] per block
// runs over all of k, so every output is one sum in the order of k: independent of the number of rows, blocks and
// threads. Tile products flush denormals to zero.
#pragma once

#include "row_runs.h"
#include "row_units.h"
#include "tiles.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int64_t kTileK = 32;

// x [num_rows, k] → pairs, zero past k; returns the number of tiles along k.
inline int64_t interleave_pairs(const bf16* x, int64_t x_stride, int64_t num_rows, int64_t k, uint32_t* pairs) {
  const int64_t tiles = (k + kTileK - 1) / kTileK;
  for (int64_t t = 0; t < num_rows; ++t) {
    const bf16* row = x + t * x_stride;
    for (int64_t i = 0; i < k / 2; ++i) std::memcpy(&pairs[i * num_rows + t], row + 2 * i, 4);
    for (int64_t i = k / 2; i < tiles * kTileK / 2; ++i)
      pairs[i * num_rows + t] = 2 * i < k ? static_cast<uint32_t>(row[2 * i].bits) : 0u;
  }
  return tiles;
}

// A tile of W that is not whole (past the last row or the last column): copied, zero outside.
inline void copy_partial_tile(const bf16* w, int64_t stride, int64_t rows, int64_t columns, bf16* tile) {
  std::memset(tile, 0, kTileRows * kTileK * sizeof(bf16));
  for (int64_t r = 0; r < rows; ++r) std::memcpy(tile + r * kTileK, w + r * stride, columns * sizeof(bf16));
}

// Row `row` of 32 runs of `run` whole rows of W, `w_stride` elements apart, as two blocks: rows of a tile are a run apart.
inline void tile_block_pair(const bf16* first, int64_t w_stride, int64_t run, int64_t row, int64_t k,
                            const uint32_t* pairs, int64_t num_rows, float (*sums)[256]) {
  const int64_t stride = run * w_stride * 2, whole = k / kTileK, x_stride = 4 * num_rows;
  const bf16* w = first + row * w_stride;
  const bf16* other = w + kTileRows * run * w_stride;
  _tile_zero(0);
  _tile_zero(1);
  for (int64_t i = 0; i < whole; ++i) {
    prefetch_runs<2 * kTileRows, 256>(first, stride, row * w_stride * 2 + i * kTileBytes);
    _tile_loadd(6, pairs + i * kTileK / 2 * num_rows, x_stride);
    _tile_loadd(4, w + i * kTileK, stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, other + i * kTileK, stride);
    _tile_dpbf16ps(1, 5, 6);
  }
  if (whole * kTileK < k) {
    alignas(64) bf16 partial[2][kTileRows * kTileK];
    copy_partial_tile(w + whole * kTileK, run * w_stride, kTileRows, k - whole * kTileK, partial[0]);
    copy_partial_tile(other + whole * kTileK, run * w_stride, kTileRows, k - whole * kTileK, partial[1]);
    order_tiles();
    _tile_loadd(6, pairs + whole * kTileK / 2 * num_rows, x_stride);
    _tile_loadd(4, partial[0], 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, partial[1], 64);
    _tile_dpbf16ps(1, 5, 6);
  }
  _tile_stored(0, sums[0], x_stride);
  _tile_stored(1, sums[1], x_stride);
  order_tiles();
}

// One block of `rows` <= 16 rows of W.
inline void tile_block(const bf16* w, int64_t w_stride, int64_t rows, int64_t k, const uint32_t* pairs,
                       int64_t num_rows, float* sums) {
  alignas(64) bf16 partial[kTileRows * kTileK];
  _tile_zero(0);
  for (int64_t begin = 0; begin < k; begin += kTileK) {
    copy_partial_tile(w + begin, w_stride, rows, min64(kTileK, k - begin), partial);
    order_tiles();
    _tile_loadd(6, pairs + begin / 2 * num_rows, 4 * num_rows);
    _tile_loadd(4, partial, 64);
    _tile_dpbf16ps(0, 4, 6);
  }
  _tile_stored(0, sums, 4 * num_rows);
  order_tiles();
}

// Rows of one branch's W against x; pairs: scratch of ceil(k / 32) * 64 * num_rows bytes.
inline void tile_linear(const bf16* x, int64_t x_stride, int64_t num_rows, const bf16* w, int64_t w_stride, int64_t k,
                        const bf16* bias, bf16* out, int64_t out_stride, RowUnits units, uint32_t* pairs) {
  interleave_pairs(x, x_stride, num_rows, k, pairs);
  order_tiles();
  configure_tiles(num_rows);
  alignas(64) float sums[2][256];
  // Sums of a block whose rows are `run` apart from n on.
  const auto store = [&](const float* from, int64_t n, int64_t rows, int64_t run) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t t = 0; t < num_rows; ++t)
        out[t * out_stride + n + r * run] =
            round_bf16(from[r * num_rows + t] + (bias ? widen(bias[n + r * run]) : 0.0f));
  };
  for (Range range; units.take(range);)
    for (int64_t n = range.begin; n < range.end;) {
      const int64_t left = range.end - n, run = rows_per_run(w_stride * 2, 2 * kTileRows, left);
      if (left < 2 * kTileRows) {
        const int64_t rows = min64(kTileRows, left);
        tile_block(w + n * w_stride, w_stride, rows, k, pairs, num_rows, sums[0]);
        store(sums[0], n, rows, 1);
        n += rows;
        continue;
      }
      for (int64_t row = 0; row < run; ++row) {
        tile_block_pair(w + n * w_stride, w_stride, run, row, k, pairs, num_rows, sums);
        for (int64_t block = 0; block < 2; ++block) store(sums[block], n + row + block * kTileRows * run, kTileRows, run);
      }
      n += 2 * kTileRows * run;
    }
  _tile_release();
}

}  // namespace antiphon::ANTIPHON_ISA
