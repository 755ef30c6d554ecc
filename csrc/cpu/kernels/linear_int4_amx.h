// int4 skinny linear on AMX tiles; included by linear_int4.cpp where the instruction set has them.
//
// A group of 128 columns of 16 rows of W is unpacked to two int8 tiles in the first-level cache and meets both planes
// of up to 8 rows of x. The accumulator tile starts at minus 8 times the sums of x, which takes the weights' offset
// back; after each group its integers are scaled and added in float32, one register a row of W.
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

inline void unpack_int4(const uint8_t* w, int64_t stride, int64_t rows, uint8_t* tiles) {
  const __m512i mask = _mm512_set1_epi8(15);
  for (int64_t r = 0; r < rows; ++r) {
    const __m512i raw = _mm512_loadu_si512(w + r * stride);
    _mm512_store_si512(tiles + r * 64, _mm512_and_si512(raw, mask));
    _mm512_store_si512(tiles + 1024 + r * 64, _mm512_and_si512(_mm512_srli_epi16(raw, 4), mask));
  }
}

// 16 rows of W against one group of 8 rows of x: sums[16][8]. `rows` < 16 only at the end of W.
inline void int4_tile_block(const uint8_t* w, const bf16* scale, int64_t n, int64_t k, int64_t rows,
                            const int8_t* planes, const int32_t* offsets, float (*sums)[kPlaneRows]) {
  alignas(64) uint8_t tiles[2][2048];
  alignas(64) int32_t products[2][256];
  alignas(64) float factors[16];
  __m256 sum[kTileRows];
  for (auto& s : sum) s = _mm256_setzero_ps();
  if (rows < kTileRows) std::memset(tiles, 0, sizeof tiles);
  for (int64_t g = 0; g < k / kInt4Group; ++g) {
    uint8_t* tile = tiles[g & 1];
    int32_t* product = products[g & 1];
    const uint8_t* packed = w + g * kTileBytes;
    for (int64_t r = 0; r < rows; ++r) prefetch(packed + r * k / 2 + 512);
    unpack_int4(packed, k / 2, rows, tile);
    const int8_t* x = planes + g * kInt4Group * 16;
    if (g & 1) {
      _tile_loadd(1, offsets + g * 16, 0);
      _tile_loadd(4, tile, 64);
      _tile_loadd(6, x, 64);
      _tile_dpbusd(1, 4, 6);
      _tile_loadd(5, tile + 1024, 64);
      _tile_loadd(7, x + 1024, 64);
      _tile_dpbusd(1, 5, 7);
      _tile_stored(1, product, 64);
    } else {
      _tile_loadd(0, offsets + g * 16, 0);
      _tile_loadd(4, tile, 64);
      _tile_loadd(6, x, 64);
      _tile_dpbusd(0, 4, 6);
      _tile_loadd(5, tile + 1024, 64);
      _tile_loadd(7, x + 1024, 64);
      _tile_dpbusd(0, 5, 7);
      _tile_stored(0, product, 64);
    }
    store(factors, load_upto(scale + g * n, rows));
    for (int r = 0; r < kTileRows; ++r) {
      const __m256i high = _mm256_load_si256(reinterpret_cast<const __m256i*>(product + 16 * r));
      const __m256i low = _mm256_load_si256(reinterpret_cast<const __m256i*>(product + 16 * r + 8));
      const __m256 total = _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32(high, 8), low));
      sum[r] = _mm256_fmadd_ps(total, _mm256_broadcast_ss(factors + r), sum[r]);
    }
  }
  for (int r = 0; r < kTileRows; ++r) _mm256_storeu_ps(sums[r], sum[r]);
}

template <class T>
inline void tile_linear_int4(const T* x, int64_t x_stride, int64_t num_rows, const uint8_t* w, const bf16* scale,
                             const T* bias, T* out, int64_t n, int64_t k, int64_t begin, int64_t end) {
  const int64_t groups = (num_rows + kPlaneRows - 1) / kPlaneRows, offset_count = k / kInt4Group * 16;
  auto* planes = static_cast<int8_t*>(scratch(groups * (k * 16 + offset_count * 4)));
  auto* offsets = reinterpret_cast<int32_t*>(planes + groups * k * 16);
  float steps[kMaxSkinnyRows];
  for (int64_t g = 0; g < groups; ++g) {
    plane_tiles(x + g * kPlaneRows * x_stride, x_stride, min64(kPlaneRows, num_rows - g * kPlaneRows), k,
                planes + g * k * 16, steps + g * kPlaneRows);
    int4_offsets(planes + g * k * 16, k, offsets + g * offset_count);
  }
  configure_tiles(16);
  float sums[kTileRows][kPlaneRows];
  for (int64_t row = begin; row < end; row += kTileRows) {
    const int64_t rows = min64(kTileRows, end - row);
    for (int64_t g = 0; g < groups; ++g) {
      int4_tile_block(w + row * k / 2, scale + row, n, k, rows, planes + g * k * 16, offsets + g * offset_count, sums);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t t = g * kPlaneRows; t < min64(num_rows, (g + 1) * kPlaneRows); ++t) {
          const float y = sums[r][t % kPlaneRows] * steps[t] + (bias ? widen(bias[row + r]) : 0.0f);
          store_n(out + t * n + row + r, set1(y), 1);
        }
    }
  }
  _tile_release();
}

}  // namespace antiphon::ANTIPHON_ISA
