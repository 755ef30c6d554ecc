// int4 skinny linear on AMX tiles; included by linear_int4.cpp where the instruction set has them.
//
// Groups of 128 columns of 32 rows of W are unpacked to int8 tiles in the first-level cache and meet both planes of up to
// 8 rows of x. Each group's integers, less 8 times the sums of x for the weights' offset, are scaled and added in
// float32, as in linear_int4_vnni.h.
#pragma once

#include "linear_int4_vnni.h"
#include "tiles.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int64_t kInt4Chunk = 2;         // groups unpacked while the chunk before is multiplied: no stage reads fresh stores
constexpr int64_t kInt4TileBytes = 4096;  // of a group of 32 rows, unpacked

// offsets[groups][8]: 8 times the sum of each row of x over the group.
inline void int4_offsets(const int8_t* planes, int64_t k, int32_t* offsets) {
  const __m512i ones = _mm512_set1_epi8(1);
  for (int64_t g = 0; g < k / kInt4Group; ++g) {
    __m512i sums = _mm512_setzero_si512();
    for (int64_t i = 0; i < kInt4Group / 4; ++i)
      sums = _mm512_dpbusd_epi32(sums, ones, _mm512_load_si512(planes + (g * kInt4Group / 4 + i) * 64));
    const __m256i high = _mm512_castsi512_si256(sums), low = _mm512_extracti64x4_epi64(sums, 1);
    const __m256i total = _mm256_slli_epi32(_mm256_add_epi32(_mm256_slli_epi32(high, 8), low), 3);
    _mm256_store_si256(reinterpret_cast<__m256i*>(offsets + g * kPlaneRows), total);
  }
}

// 64 bytes each of 16 rows: low halves to tiles[0, 1024), high halves to tiles[1024, 2048).
inline void unpack_int4(const uint8_t* w, int64_t stride, uint8_t* tiles) {
  const __m512i mask = _mm512_set1_epi8(15);
  for (int64_t r = 0; r < kTileRows; ++r) {
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
  _tile_loadd(7, x + 1024, 64);
  _tile_loadd(4, tiles, 64);
  _tile_dpbusd(0, 4, 6);
  _tile_loadd(5, tiles + 2048, 64);
  _tile_dpbusd(1, 5, 6);
  _tile_loadd(2, tiles + 1024, 64);
  _tile_dpbusd(0, 2, 7);
  _tile_loadd(3, tiles + 3072, 64);
  _tile_dpbusd(1, 3, 7);
  _tile_stored(0, products, 64);
  _tile_stored(1, products + 256, 64);
}

// sums[32][8] += (256 high + low - offset) * scale of the row, two rows at a time.
inline void int4_scale(const int32_t* products, const int32_t* offsets, const vf (&factor)[2], float* sums) {
  alignas(64) float factors[2 * kTileRows];
  store(factors, factor[0]);
  store(factors + 16, factor[1]);
  const __m256i half = _mm256_load_si256(reinterpret_cast<const __m256i*>(offsets));
  const __m512i offset = _mm512_inserti64x4(_mm512_castsi256_si512(half), half, 1);
  for (int64_t r = 0; r < 2 * kTileRows; r += 2) {
    const __m512i even = _mm512_load_si512(products + 16 * r), odd = _mm512_load_si512(products + 16 * r + 16);
    const __m512i high = _mm512_shuffle_i32x4(even, odd, 0x44), low = _mm512_shuffle_i32x4(even, odd, 0xee);
    const __m512i exact = _mm512_sub_epi32(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low), offset);
    const vf pair = _mm512_insertf32x8(set1(factors[r]), _mm256_set1_ps(factors[r + 1]), 1);
    store(sums + 8 * r, fmadd(_mm512_cvtepi32_ps(exact), pair, load(sums + 8 * r)));
  }
}

// The runs of W that a call works on: 32 lanes, of which the first `rows` count.
struct Int4Runs {
  const uint8_t* first;
  int64_t run, k, rows;
};

// Groups [begin, end) of row `pass` of the runs to tiles.
inline void unpack_groups(const Int4Runs& w, int64_t pass, int64_t begin, int64_t end,
                          uint8_t (*tiles)[kInt4TileBytes]) {
  const int64_t stride = w.run * w.k / 2;
  for (int64_t g = begin; g < end; ++g, ++tiles) {
    const int64_t at = pass * w.k / 2 + g * kTileBytes;
    prefetch_runs<2 * kTileRows, 256>(w.first, stride, at);
    unpack_int4(w.first + at, stride, *tiles);
    unpack_int4(w.first + at + kTileRows * stride, stride, *tiles + kInt4TileBytes / 2);
  }
}

// Row `pass` of the runs against 8 rows of x: sums[32][8]. scale is that of the pass's first row.
inline void int4_tile_pass(const Int4Runs& w, int64_t pass, const bf16* scale, int64_t n, const int8_t* planes,
                           const int32_t* offsets, float* sums) {
  alignas(64) uint8_t tiles[2][kInt4Chunk][kInt4TileBytes];
  alignas(64) int32_t products[kInt4Chunk][512];
  const int64_t groups = w.k / kInt4Group;
  const auto unpack = [&](int64_t g) {
    unpack_groups(w, pass, g, min64(g + kInt4Chunk, groups), tiles[g / kInt4Chunk % 2]);
  };
  std::memset(sums, 0, 2 * kTileRows * kPlaneRows * sizeof(float));
  unpack(0);
  for (int64_t begin = 0; begin < groups; begin += kInt4Chunk) {
    if (begin + kInt4Chunk < groups) unpack(begin + kInt4Chunk);
    const int64_t count = min64(kInt4Chunk, groups - begin);
    for (int64_t c = 0; c < count; ++c)
      int4_products(tiles[begin / kInt4Chunk % 2][c], planes + (begin + c) * kInt4Group * 16, products[c]);
    for (int64_t c = 0; c < count; ++c) {
      const int64_t g = begin + c;
      const vf factors[2] = {int4_factors(scale, n, g, w.run, min64(w.rows, 16)),
                             int4_factors(scale + 16 * w.run, n, g, w.run, max64(w.rows - 16, 0))};
      int4_scale(products[c], offsets + g * kPlaneRows, factors, sums);
    }
  }
}

// Column t of sums[32][8].
inline vf int4_column(const float* sums, int64_t t) {
  const __m512i lanes = _mm512_setr_epi32(0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120);
  return _mm512_i32gather_ps(lanes, sums + t, 4);
}

template <class T>
inline void tile_linear_int4(const T* x, int64_t x_stride, int64_t num_rows, const uint8_t* w, const bf16* scale,
                             const T* bias, T* out, int64_t n, int64_t k, int64_t begin, int64_t end) {
  const int64_t groups = (num_rows + kPlaneRows - 1) / kPlaneRows, offset_count = k / kInt4Group * kPlaneRows;
  const int64_t tail_bytes = kTileRows * k;  // the last rows of W, zero-padded to two blocks
  auto* planes = static_cast<int8_t*>(scratch(groups * (k * 16 + offset_count * 4) + tail_bytes));
  auto* tail = reinterpret_cast<uint8_t*>(planes + groups * k * 16);
  auto* offsets = reinterpret_cast<int32_t*>(tail + tail_bytes);
  float steps[kMaxSkinnyRows];
  for (int64_t g = 0; g < groups; ++g) {
    plane_tiles(x + g * kPlaneRows * x_stride, x_stride, min64(kPlaneRows, num_rows - g * kPlaneRows), k,
                planes + g * k * 16, steps + g * kPlaneRows);
    int4_offsets(planes + g * k * 16, k, offsets + g * offset_count);
  }
  configure_tiles(16);
  alignas(64) float sums[2 * kTileRows * kPlaneRows];
  for (int64_t row = begin; row < end;) {
    const int64_t lanes = 2 * kTileRows, rows = min64(lanes, end - row);
    Int4Runs runs{w + row * k / 2, rows_per_run(k / 2, lanes, end - row), k, rows};
    if (rows < lanes) {
      std::memset(tail, 0, tail_bytes);
      std::memcpy(tail, runs.first, rows * k / 2);
      runs.first = tail;
    }
    for (int64_t pass = 0; pass < runs.run; ++pass, ++row)
      for (int64_t t = 0; t < num_rows; ++t) {
        const int64_t g = t / kPlaneRows;
        if (t % kPlaneRows == 0)
          int4_tile_pass(runs, pass, scale + row, n, planes + g * k * 16, offsets + g * offset_count, sums);
        for (int64_t r = 0; r < rows; r += kTileRows)
          int4_store(int4_column(sums + r * kPlaneRows, t % kPlaneRows), steps[t],
                     bias ? bias + row + r * runs.run : nullptr, runs.run, min64(kTileRows, rows - r),
                     out + t * n + row + r * runs.run);
      }
    row += (lanes - 1) * runs.run;
  }
  _tile_release();
}

}  // namespace antiphon::ANTIPHON_ISA
