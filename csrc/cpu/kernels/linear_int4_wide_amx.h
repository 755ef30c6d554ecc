// Wide int4 linear on AMX tiles; included by linear_quantized_wide.cpp where the instruction set has them.
//
// A panel of W is unpacked to tiles once for all rows of x. A group's four tiles of a block of 16 rows of x, two depths
// of both planes, stay in registers while the panel's tiles of W pass by: 16 rows of W are two loads, four products and
// two stores of sums; where two tiles of W meet two of x, as for int8, every product costs a load. Meanwhile sums of
// the 16 rows before them are scaled and added in float32. They are the integers of linear_int4_amx.h, scaled and added
// in the same order, so a row has the same result in a prompt and in a decode step.
#pragma once

#include "plane_blocks.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int64_t kInt4PanelTiles = 8;                        // of 16 rows of W
constexpr int64_t kInt4Panel = kInt4PanelTiles * kTileRows;
constexpr int64_t kInt4PanelGroups = 24;                      // unpacked at once, 384 KiB of the second-level cache
constexpr int64_t kInt4ChunkGroups = 2;                       // whose tiles stay in the first-level cache
constexpr int64_t kInt4GroupTiles = 2 * kTileSize;            // bytes of 16 rows of W
constexpr float kInt4WideUnit = 1.0f / 16;  // of the unpacked weights, which keep their place in a byte's upper half

template <class T>
using Int4Wide = PlaneProblem<T, uint8_t, bf16>;

// The sums of 16 rows of W that wait for their scaling: products[2][16][16] of both planes, or of two tiles of W if
// both planes share a tile; factors of the rows of W.
struct Int4Waiting {
  const int32_t* products;
  const float* factors;
  float* sums;
};

// sums[r] += (256 high + low) * factor, rows of W [kFirst, kFirst + 4); rounded once before, as the integer would be.
template <int kFirst>
inline void int4_wide_scale(const Int4Waiting& s) {
  for (int r = kFirst; r < kFirst + 4; ++r) {
    const vf high = _mm512_cvtepi32_ps(_mm512_load_si512(s.products + 16 * r));
    const vf low = _mm512_cvtepi32_ps(_mm512_load_si512(s.products + kTileSums + 16 * r));
    const vf sum = fmadd(fmadd(high, set1(256.0f), low), set1(s.factors[r]), _mm512_load_ps(s.sums + 16 * r));
    _mm512_store_ps(s.sums + 16 * r, sum);
  }
}

// The same where both planes share a tile: rows r | r + 8 of two tiles of W, sums[tile][8][16].
template <int kFirst>
inline void int4_wide_scale_pairs(const Int4Waiting& s) {
  for (int i = kFirst; i < kFirst + 4; ++i) {
    const int tile = i / 8, r = i % 8;
    const vf a = _mm512_cvtepi32_ps(_mm512_load_si512(s.products + tile * kTileSums + 16 * r));
    const vf b = _mm512_cvtepi32_ps(_mm512_load_si512(s.products + tile * kTileSums + 16 * (r + 8)));
    const vf exact = fmadd(_mm512_shuffle_f32x4(a, b, 0x44), set1(256.0f), _mm512_shuffle_f32x4(a, b, 0xee));
    const float* f = s.factors + tile * kTileRows + r;
    const vf factor = _mm512_mask_blend_ps(0xff00, set1(f[0]), set1(f[8]));
    float* sum = s.sums + tile * kTileSums + 16 * r;
    _mm512_store_ps(sum, fmadd(exact, factor, _mm512_load_ps(sum)));
  }
}

// Products of 16 rows of W and the block in tiles 4 to 7, and the scaling of those before.
inline void int4_wide_step(const int8_t* w, int32_t* products, const Int4Waiting& before) {
  order_tiles();
  _tile_zero(0);
  _tile_zero(1);
  _tile_loadd(2, w, kTileBytes);
  _tile_dpbssd(0, 2, 4);
  int4_wide_scale<0>(before);
  _tile_dpbssd(1, 2, 5);
  int4_wide_scale<4>(before);
  _tile_loadd(3, w + kTileSize, kTileBytes);
  _tile_dpbssd(0, 3, 6);
  int4_wide_scale<8>(before);
  _tile_dpbssd(1, 3, 7);
  int4_wide_scale<12>(before);
  _tile_stored(0, products, 64);
  _tile_stored(1, products + kTileSums, 64);
  order_tiles();
}

// The same of 32 rows of W and a block of up to 8 rows in tiles 4 and 5.
inline void int4_wide_step_pairs(const int8_t* w, int32_t* products, const Int4Waiting& before) {
  order_tiles();
  _tile_zero(0);
  _tile_zero(1);
  _tile_loadd(2, w, kTileBytes);
  _tile_dpbssd(0, 2, 4);
  int4_wide_scale_pairs<0>(before);
  _tile_loadd(3, w + kInt4GroupTiles, kTileBytes);
  _tile_dpbssd(1, 3, 4);
  int4_wide_scale_pairs<4>(before);
  _tile_loadd(2, w + kTileSize, kTileBytes);
  _tile_dpbssd(0, 2, 5);
  int4_wide_scale_pairs<8>(before);
  _tile_loadd(3, w + kInt4GroupTiles + kTileSize, kTileBytes);
  _tile_dpbssd(1, 3, 5);
  int4_wide_scale_pairs<12>(before);
  _tile_stored(0, products, 64);
  _tile_stored(1, products + kTileSums, 64);
  order_tiles();
}

// The calling thread's memory for a panel.
struct Int4WideMemory {
  float* sums;        // [block][tile][16][16]
  int8_t* tiles;      // [group][tile][2][16][64]
  float* factors;     // [group][kInt4Panel]
  int32_t* products;  // [2][2][16][16]
  float* nowhere;     // sums of what waits at the start, [2][16][16]

  Int4WideMemory(int64_t blocks, int64_t groups) {
    groups = min64(groups, kInt4PanelGroups);
    const int64_t num_sums = blocks * kInt4PanelTiles * kTileSums;
    const int64_t tile_bytes = groups * kInt4PanelTiles * kInt4GroupTiles;
    sums = static_cast<float*>(scratch(num_sums * 4 + tile_bytes + groups * kInt4Panel * 4 + 6 * kTileSums * 4));
    tiles = reinterpret_cast<int8_t*>(sums + num_sums);
    factors = reinterpret_cast<float*>(tiles + tile_bytes);
    products = reinterpret_cast<int32_t*>(factors + groups * kInt4Panel);
    nowhere = reinterpret_cast<float*>(products + 4 * kTileSums);
  }
};

// Groups [begin, end) of `rows` rows of W as tiles and their factors, zero up to 32 rows at a time.
inline void int4_unpack(const uint8_t* w, const bf16* scale, int64_t n, int64_t k, int64_t rows, int64_t begin,
                        int64_t end, const Int4WideMemory& memory) {
  const __m512i mask = _mm512_set1_epi8(-16), sign = _mm512_set1_epi8(-128);
  const auto signed_upper = [&](__m512i v) {
    return _mm512_ternarylogic_epi32(v, mask, sign, 0x6a);  // (v & mask) ^ sign
  };
  if (rows % (2 * kTileRows)) std::memset(memory.tiles, 0, (end - begin) * kInt4PanelTiles * kInt4GroupTiles);
  for (int64_t first = 0; first < rows; first += 2 * kTileRows)
    for (int64_t g = begin; g < end; ++g)
      for (int64_t r = first; r < min64(first + 2 * kTileRows, rows); ++r) {
        int8_t* out = memory.tiles + ((g - begin) * kInt4PanelTiles + r / kTileRows) * kInt4GroupTiles +
                      r % kTileRows * kTileBytes;
        const __m512i raw = _mm512_loadu_si512(w + r * k / 2 + g * kInt4Bytes);
        _mm512_store_si512(out, signed_upper(_mm512_slli_epi16(raw, 4)));
        _mm512_store_si512(out + kTileSize, signed_upper(raw));
      }
  for (int64_t g = begin; g < end; ++g)
    for (int64_t r = 0; r < kInt4Panel; r += kTileRows)
      store(memory.factors + (g - begin) * kInt4Panel + r,
            load_upto(scale + g * n + min64(r, rows), max64(0, min64(kTileRows, rows - r))));
}

// sums += groups [0, groups) of `tiles` tiles of W at w times a block of x at x, of 16 rows or of 8 (kPairs).
template <bool kPairs>
inline void int4_wide_block(const int8_t* w, const float* factors, const int8_t* x, int64_t groups, int64_t tiles,
                            float* sums, const Int4WideMemory& memory, WeightsAhead& ahead) {
  constexpr int64_t kStep = kPairs ? 2 : 1;
  Int4Waiting waiting{memory.products, factors, memory.nowhere};
  int64_t turn = 0;
  for (int64_t g = 0; g < groups; ++g, x += (kPairs ? 2 : 4) * kTileSize) {
    _tile_loadd(4, x, kTileBytes);
    _tile_loadd(5, x + kTileSize, kTileBytes);
    if constexpr (!kPairs) {
      _tile_loadd(6, x + 2 * kTileSize, kTileBytes);
      _tile_loadd(7, x + 3 * kTileSize, kTileBytes);
    }
    for (int64_t tile = 0; tile < tiles; tile += kStep, turn = 1 - turn) {
      ahead.fetch();
      int32_t* products = memory.products + (1 - turn) * 2 * kTileSums;
      (kPairs ? int4_wide_step_pairs : int4_wide_step)(w + (g * kInt4PanelTiles + tile) * kInt4GroupTiles, products,
                                                       waiting);
      waiting = {products, factors + g * kInt4Panel + tile * kTileRows, sums + tile * kTileSums};
    }
  }
  kPairs ? int4_wide_scale_pairs<0>(waiting) : int4_wide_scale<0>(waiting);
  kPairs ? int4_wide_scale_pairs<4>(waiting) : int4_wide_scale<4>(waiting);
  kPairs ? int4_wide_scale_pairs<8>(waiting) : int4_wide_scale<8>(waiting);
  kPairs ? int4_wide_scale_pairs<12>(waiting) : int4_wide_scale<12>(waiting);
}

// Results of up to 16 outputs from n on for a block of x; sums[16][16], or [8][16] of rows r | r + 8.
template <class T>
inline void int4_wide_store(const Int4Wide<T>& p, const float* sums, int64_t b, int64_t n, int64_t columns) {
  const vf steps = mul(load(p.steps + b * kTileRows), set1(kInt4WideUnit));
  const bool pairs = plane_tiles_of(p.rows_of(b)) == 1;
  vf results[16];
  for (int64_t r = 0; r < kTileRows; ++r) {
    vf sum = load(sums + (pairs ? r % 8 : r) * 16);
    if (pairs && r >= 8) sum = _mm512_shuffle_f32x4(sum, sum, 0xee);
    results[r] = add(mul(sum, steps), set1(r < columns && p.bias ? widen(p.bias[n + r]) : 0.0f));
  }
  store_outputs(results, p.rows_of(b), columns, p.out + b * kTileRows * p.n + n, p.n);
}

// Groups [first, last) of a panel of W times all rows of x.
template <class T>
inline void int4_wide_products(const Int4Wide<T>& p, int64_t tiles, int64_t first, int64_t last,
                               const Int4WideMemory& memory, WeightsAhead& ahead) {
  for (int64_t begin = first; begin < last; begin += kInt4ChunkGroups)
    for (int64_t b = 0; b < p.blocks(); ++b) {
      const int64_t x_tiles = plane_tiles_of(p.rows_of(b));
      (x_tiles == 1 ? int4_wide_block<true> : int4_wide_block<false>)(
          memory.tiles + (begin - first) * kInt4PanelTiles * kInt4GroupTiles,
          memory.factors + (begin - first) * kInt4Panel, p.block(b) + begin * 2 * x_tiles * kTileSize,
          min64(kInt4ChunkGroups, last - begin), tiles, memory.sums + b * kInt4PanelTiles * kTileSums, memory, ahead);
    }
}

// A panel of at most kInt4Panel columns of the result, for all rows of x; `after` is of `other`.
template <class T>
inline void int4_wide_panel(const Int4Wide<T>& p, const Panel& panel, const Int4Wide<T>& other, const Panel& after,
                            const Int4WideMemory& memory) {
  const int64_t groups = p.k / kInt4Group, tiles = (panel.columns + kTileRows - 1) / kTileRows;
  const uint8_t* w = p.w + panel.n * p.k / 2;
  std::memset(memory.sums, 0, p.blocks() * kInt4PanelTiles * kTileSums * sizeof(float));
  for (int64_t first = 0; first < groups; first += kInt4PanelGroups) {
    const int64_t last = min64(first + kInt4PanelGroups, groups), steps = (last - first) * tiles * p.blocks();
    int4_unpack(w, p.scale + panel.n, p.n, p.k, panel.columns, first, last, memory);
    const bool ends = last == groups;  // and what comes next is another panel's beginning
    const int64_t bytes = min64(kInt4PanelGroups, ends ? groups : groups - last) * kInt4Bytes;
    WeightsAhead ahead;
    if (!ends) ahead = {w + last * kInt4Bytes, p.k / 2, bytes, panel.columns, steps};
    else if (after.columns > 0) ahead = {other.w + after.n * p.k / 2, p.k / 2, bytes, after.columns, steps};
    int4_wide_products(p, tiles, first, last, memory, ahead);
  }
  for (int64_t tile = 0; tile < tiles; ++tile)
    for (int64_t b = 0; b < p.blocks(); ++b)
      int4_wide_store(p, memory.sums + (b * kInt4PanelTiles + tile) * kTileSums, b, panel.n + tile * kTileRows,
                      min64(kTileRows, panel.columns - tile * kTileRows));
}

}  // namespace antiphon::ANTIPHON_ISA
