// int4 skinny linear on AMX tiles; included by linear_int4.cpp where the instruction set has them.
//
// A group of 128 columns of 16 rows of W is unpacked to two int8 tiles in the first-level cache and meets both planes
// of up to 8 rows of x. After each group the integers, less 8 times the sums of x for the weights' offset, are scaled and
// added in float32.
#pragma once

#include "tiles.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int64_t kInt4Group = 128;

// offsets[groups][16]: -8 times the sum of each column's plane over the group.
inline void int4_offsets(const int8_t* planes, int64_t k, int32_t* offsets) {
  for (int64_t g = 0; g < k / kInt4Group; ++g) {
    int32_t* out = offsets + g * 16;
    for (int c = 0; c < 16; ++c) out[c] = 0;
    for (int64_t i = 0; i < kInt4Group / 4; ++i)
      for (int c = 0; c < 16; ++c)
        for (int b = 0; b < 4; ++b) out[c] -= 8 * planes[(g * kInt4Group / 4 + i) * 64 + 4 * c + b];
  }
}

// 64 bytes each of 16 rows: low halves to tiles[0, 1024), high halves to tiles[1024, 2048).
inline void unpack_int4(const uint8_t* w, int64_t stride, uint8_t* tiles) {
  const __m512i mask = _mm512_set1_epi8(15);
  for (int64_t r = 0; r < kTileRows; ++r) {
    prefetch(w + r * stride + 512);
    const __m512i raw = _mm512_loadu_si512(w + r * stride);
    _mm512_store_si512(tiles + r * 64, _mm512_and_si512(raw, mask));
    _mm512_store_si512(tiles + 1024 + r * 64, _mm512_and_si512(_mm512_srli_epi16(raw, 4), mask));
  }
}

// products[2][16][16] of an unpacked group of two blocks of W and its columns of x.
inline void int4_products(const uint8_t* tiles, const int8_t* x, int32_t* products) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_loadd(6, x, 64);
  _tile_loadd(4, tiles, 64);
  _tile_dpbusd(0, 4, 6);
  _tile_loadd(2, tiles + 2048, 64);
  _tile_dpbusd(1, 2, 6);
  _tile_loadd(7, x + 1024, 64);
  _tile_loadd(5, tiles + 1024, 64);
  _tile_dpbusd(0, 5, 7);
  _tile_loadd(3, tiles + 3072, 64);
  _tile_dpbusd(1, 3, 7);
  _tile_stored(0, products, 64);
  _tile_stored(1, products + 256, 64);
}

// sums[32][16] += (products + offsets) * scale of the row; high and low planes stay apart until the end.
inline void int4_scale(const int32_t* products, const int32_t* offsets, const bf16* scale, int64_t rows, float* sums) {
  alignas(64) float factors[2 * kTileRows];
  store(factors, load_upto(scale, min64(rows, 16)));
  store(factors + 16, load_upto(scale + 16, max64(rows - 16, 0)));
  const __m512i offset = _mm512_loadu_si512(offsets);
  for (int64_t r = 0; r < 2 * kTileRows; ++r) {
    const __m512 exact = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_load_si512(products + 16 * r), offset));
    store(sums + 16 * r, fmadd(exact, set1(factors[r]), load(sums + 16 * r)));
  }
}

// Two blocks of 16 rows of W against 8 rows of x: sums[32][16]. Three groups are under way at a time, one being
// unpacked, one multiplied, one scaled, so that no stage reads what has only just been written.
inline void int4_tile_pair(const uint8_t* w, const bf16* scale, int64_t n, int64_t k, int64_t rows,
                           const int8_t* planes, const int32_t* offsets, float* sums) {
  alignas(64) uint8_t tiles[2][4096];
  alignas(64) int32_t products[2][512];
  const int64_t groups = k / kInt4Group, stride = k / 2;
  std::memset(sums, 0, 2 * kTileRows * 16 * sizeof(float));
  for (int64_t g = -1; g <= groups; ++g) {
    if (g + 1 < groups) {
      unpack_int4(w + (g + 1) * kTileBytes, stride, tiles[(g + 1) & 1]);
      unpack_int4(w + kTileRows * stride + (g + 1) * kTileBytes, stride, tiles[(g + 1) & 1] + 2048);
    }
    if (g >= 0 && g < groups) int4_products(tiles[g & 1], planes + g * kInt4Group * 16, products[g & 1]);
    if (g > 0) int4_scale(products[(g - 1) & 1], offsets + (g - 1) * 16, scale + (g - 1) * n, rows, sums);
  }
}

template <class T>
inline void tile_linear_int4(const T* x, int64_t x_stride, int64_t num_rows, const uint8_t* w, const bf16* scale,
                             const T* bias, T* out, int64_t n, int64_t k, int64_t begin, int64_t end) {
  const int64_t groups = (num_rows + kPlaneRows - 1) / kPlaneRows, offset_count = k / kInt4Group * 16;
  const int64_t tail_bytes = kTileRows * k;  // the last rows of W, zero-padded to two blocks
  auto* planes = static_cast<int8_t*>(scratch(groups * (k * 16 + offset_count * 4) + tail_bytes));
  auto* offsets = reinterpret_cast<int32_t*>(planes + groups * k * 16);
  auto* tail = reinterpret_cast<uint8_t*>(offsets + groups * offset_count);
  float steps[kMaxSkinnyRows];
  for (int64_t g = 0; g < groups; ++g) {
    plane_tiles(x + g * kPlaneRows * x_stride, x_stride, min64(kPlaneRows, num_rows - g * kPlaneRows), k,
                planes + g * k * 16, steps + g * kPlaneRows);
    int4_offsets(planes + g * k * 16, k, offsets + g * offset_count);
  }
  configure_tiles(16);
  alignas(64) float sums[2 * kTileRows * 16];
  for (int64_t row = begin; row < end; row += 2 * kTileRows) {
    const int64_t rows = min64(2 * kTileRows, end - row);
    const uint8_t* block = w + row * k / 2;
    if (rows < 2 * kTileRows) {
      std::memset(tail, 0, tail_bytes);
      std::memcpy(tail, block, rows * k / 2);
      block = tail;
    }
    for (int64_t g = 0; g < groups; ++g) {
      int4_tile_pair(block, scale + row, n, k, rows, planes + g * k * 16, offsets + g * offset_count, sums);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t t = g * kPlaneRows; t < min64(num_rows, (g + 1) * kPlaneRows); ++t) {
          const float* sum = sums + 16 * r + t % kPlaneRows;
          const float y = (sum[0] * 256.0f + sum[kPlaneRows]) * steps[t] + (bias ? widen(bias[row + r]) : 0.0f);
          store_n(out + t * n + row + r, set1(y), 1);
        }
    }
  }
  _tile_release();
}

}  // namespace antiphon::ANTIPHON_ISA
