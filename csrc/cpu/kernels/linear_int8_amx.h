// int8 skinny linear on AMX tiles; included by linear_int8.cpp where the instruction set has them. 16 rows of W by 64
// columns, straight from row-major memory, meet both planes of up to 8 rows of x in one product.
#pragma once

#include "row_runs.h"
#include "row_units.h"
#include "tiles.h"

namespace antiphon::ANTIPHON_ISA {

// Sums of row `pass` of 32 runs of W from `first` on, for one or two groups of 8 rows of x: sums[block][group][16][16].
template <int kGroups>
inline void int8_tile_pair(const int8_t* first, int64_t run, int64_t pass, int64_t k, const int8_t* planes,
                           int32_t (*sums)[2][256]) {
  const int64_t stride = run * k;
  const int8_t *w = first + pass * k, *other = w + kTileRows * stride;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t i = 0; i < k; i += kTileBytes) {
    prefetch_runs<2 * kTileRows, 256>(first, stride, pass * k + i);
    _tile_loadd(6, planes + i * 16, 64);
    _tile_loadd(4, w + i, stride);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(5, other + i, stride);
    _tile_dpbssd(1, 5, 6);
    if constexpr (kGroups == 2) {
      _tile_loadd(7, planes + (k + i) * 16, 64);
      _tile_dpbssd(2, 4, 7);
      _tile_dpbssd(3, 5, 7);
    }
  }
  _tile_stored(0, sums[0][0], 64);
  _tile_stored(1, sums[1][0], 64);
  _tile_stored(2, sums[0][1], 64);
  _tile_stored(3, sums[1][1], 64);
  order_tiles();
}

template <class T>
inline void tile_linear_int8(const T* x, int64_t x_stride, int64_t num_rows, const int8_t* w, const float* scale,
                             const T* bias, T* out, int64_t out_stride, int64_t k, RowUnits units) {
  const int64_t groups = (num_rows + kPlaneRows - 1) / kPlaneRows, tail_bytes = 2 * kTileRows * k;
  auto* planes = static_cast<int8_t*>(scratch(groups * k * 16 + tail_bytes));
  int8_t* tail = planes + groups * k * 16;  // the last rows of W, zero-padded to whole tiles
  float steps[kMaxSkinnyRows];
  for (int64_t g = 0; g < groups; ++g)
    plane_tiles(x + g * kPlaneRows * x_stride, x_stride, min64(kPlaneRows, num_rows - g * kPlaneRows), k,
                planes + g * k * 16, steps + g * kPlaneRows);
  configure_tiles(16);
  alignas(64) int32_t sums[2][2][256];
  for (Range range; units.take(range);)
    for (int64_t n = range.begin; n < range.end;) {
      const int64_t run = rows_per_run(k, 2 * kTileRows, range.end - n), rows = min64(2 * kTileRows, range.end - n);
      const int8_t* block = w + n * k;
      if (rows < 2 * kTileRows) {
        std::memset(tail, 0, tail_bytes);
        std::memcpy(tail, block, rows * k);
        block = tail;
      }
      for (int64_t pass = 0; pass < run; ++pass, ++n) {
        groups == 1 ? int8_tile_pair<1>(block, run, pass, k, planes, sums)
                    : int8_tile_pair<2>(block, run, pass, k, planes, sums);
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t t = 0; t < num_rows; ++t) {
            const int32_t* sum = sums[r / kTileRows][t / kPlaneRows] + r % kTileRows * 16 + t % kPlaneRows;
            const float total = static_cast<float>(256ll * sum[0] + sum[kPlaneRows]);
            const float y = total * (scale[n + r * run] * steps[t]) + (bias ? widen(bias[n + r * run]) : 0.0f);
            store_n(out + t * out_stride + n + r * run, set1(y), 1);
          }
      }
      n += (2 * kTileRows - 1) * run;
    }
  _tile_release();
}

}  // namespace antiphon::ANTIPHON_ISA
