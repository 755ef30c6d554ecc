// Wide int8 linear on AMX tiles; included by linear_quantized_wide.cpp where the instruction set has them.
//
// 32 rows of W meet a block of 16 rows of x in four tiles of sums, its planes apart. W is copied to tiles first, for
// all rows of x, and walked in chunks whose tiles stay in the first-level cache; the sums wait in memory meanwhile. They
// are the exact integers of linear_int8_amx.h and meet the same operations afterwards, so a row has the same result in a
// prompt and in a decode step.
#pragma once

#include "plane_blocks.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int64_t kInt8Group = 2 * kTileRows;   // rows of W that meet a block of x in four tiles of sums
constexpr int64_t kInt8Groups = 2;              // in a panel
constexpr int64_t kInt8Panel = kInt8Groups * kInt8Group;
constexpr int64_t kInt8PanelDepths = 96;        // copied at once, 384 KiB of the second-level cache
constexpr int64_t kInt8ChunkDepths = 16;

template <class T>
using Int8Wide = PlaneProblem<T, int8_t, float>;

// sums[x tile][W tile][16][16] += 32 rows of W times a block of x of one or two tiles, over `depths` of k.
template <int kTiles>
inline void int8_wide_tiles(const int8_t* w, const int8_t* x, int64_t depths, bool first, int32_t* sums,
                            WeightsAhead& ahead) {
  first ? zero_sums<kTiles>() : load_sums<kTiles>(sums, kTileSums, 2 * kTileSums);
  for (int64_t i = 0; i < depths; ++i, w += 2 * kTileSize, x += kTiles * kTileSize) {
    ahead.fetch();
    fetch_tile(w + 2 * kTileSize);
    _tile_loadd(4, w, kTileBytes);
    _tile_loadd(6, x, kTileBytes);
    _tile_dpbssd(0, 4, 6);
    fetch_tile(w + 3 * kTileSize);
    _tile_loadd(5, w + kTileSize, kTileBytes);
    _tile_dpbssd(1, 5, 6);
    fetch_tile(x + kTiles * kTileSize);
    if constexpr (kTiles == 2) {
      _tile_loadd(7, x + kTileSize, kTileBytes);
      _tile_dpbssd(2, 4, 7);
      fetch_tile(x + 3 * kTileSize);
      _tile_dpbssd(3, 5, 7);
    }
  }
  store_sums<kTiles>(sums, kTileSums, 2 * kTileSums);
}

// Columns [begin, end) of up to 32 rows of W as tiles [k / 64][2][16][64], zero past `rows`.
inline void int8_copy(const int8_t* w, int64_t k, int64_t rows, int64_t begin, int64_t end, int8_t* out) {
  if (rows < kInt8Group) std::memset(out, 0, (end - begin) * kInt8Group);
  for (int64_t i = begin; i < end; i += kPlaneDepth, out += 2 * kTileSize)
    for (int64_t r = 0; r < rows; ++r) _mm512_store_si512(out + r * kTileBytes, _mm512_loadu_si512(w + r * k + i));
}

// The calling thread's memory: sums of a panel, [group][block][2][2][16][16], and its tiles of W,
// [group][depth][2][16][64].
struct Int8WideMemory {
  int64_t group_sums, group_tiles;
  int32_t* sums;
  int8_t* tiles;
  Int8WideMemory(int64_t blocks, int64_t k)
      : group_sums(blocks * 4 * kTileSums), group_tiles(min64(k / kPlaneDepth, kInt8PanelDepths) * 2 * kTileSize) {
    sums = static_cast<int32_t*>(scratch(kInt8Groups * (group_sums * 4 + group_tiles)));
    tiles = reinterpret_cast<int8_t*>(sums + kInt8Groups * group_sums);
  }
};

// Results of up to 16 outputs from n on for a block of x; sums[x tile][2][16][16] of these outputs.
template <class T>
inline void int8_wide_store(const Int8Wide<T>& p, const int32_t* sums, int64_t b, int64_t n, int64_t columns) {
  const bool apart = plane_tiles_of(p.rows_of(b)) == 2;
  const vf steps = load(p.steps + b * kTileRows);
  vf results[16];
  for (int64_t r = 0; r < kTileRows; ++r) {
    const __m512i high = _mm512_load_si512(sums + r * 16);
    const __m512i low = apart ? _mm512_load_si512(sums + 2 * kTileSums + r * 16) : _mm512_shuffle_i32x4(high, high, 0xee);
    const bool is_output = r < columns;
    const vf total = IntDot::combine(high, low), scale = set1(is_output ? p.scale[n + r] : 0.0f);
    const vf shift = set1(is_output && p.bias ? widen(p.bias[n + r]) : 0.0f);
    results[r] = add(mul(total, mul(scale, steps)), shift);
  }
  store_outputs(results, p.rows_of(b), columns, p.out + b * kTileRows * p.n + n, p.n);
}

// Depths [first, last) of a panel of W times all rows of x.
template <class T>
inline void int8_wide_products(const Int8Wide<T>& p, int64_t groups, int64_t first, int64_t last,
                               const Int8WideMemory& memory, WeightsAhead& ahead) {
  for (int64_t begin = first; begin < last; begin += kInt8ChunkDepths)
    for (int64_t b = 0; b < p.blocks(); ++b) {
      const int64_t tiles = plane_tiles_of(p.rows_of(b));
      for (int64_t g = 0; g < groups; ++g)
        (tiles == 2 ? int8_wide_tiles<2> : int8_wide_tiles<1>)(
            memory.tiles + g * memory.group_tiles + (begin - first) * 2 * kTileSize,
            p.block(b) + begin * tiles * kTileSize, min64(kInt8ChunkDepths, last - begin), begin == 0,
            memory.sums + g * memory.group_sums + b * 4 * kTileSums, ahead);
    }
}

// A panel of at most kInt8Panel columns of the result, for all rows of x; `after` is of `other`.
template <class T>
inline void int8_wide_panel(const Int8Wide<T>& p, const Panel& panel, const Int8Wide<T>& other, const Panel& after,
                            const Int8WideMemory& memory) {
  const int64_t depths = p.k / kPlaneDepth, groups = (panel.columns + kInt8Group - 1) / kInt8Group;
  const int8_t* w = p.w + panel.n * p.k;
  for (int64_t first = 0; first < depths; first += kInt8PanelDepths) {
    const int64_t last = min64(first + kInt8PanelDepths, depths), steps = (last - first) * groups * p.blocks();
    for (int64_t g = 0; g < groups; ++g)
      int8_copy(w + g * kInt8Group * p.k, p.k, min64(kInt8Group, panel.columns - g * kInt8Group), first * kPlaneDepth,
                last * kPlaneDepth, memory.tiles + g * memory.group_tiles);
    const bool ends = last == depths;  // and what comes next is another panel's beginning
    const int64_t bytes = min64(kInt8PanelDepths, ends ? depths : depths - last) * kPlaneDepth;
    WeightsAhead ahead;
    if (!ends) ahead = {w + last * kPlaneDepth, p.k, bytes, panel.columns, steps};
    else if (after.columns > 0) ahead = {other.w + after.n * p.k, p.k, bytes, after.columns, steps};
    int8_wide_products(p, groups, first, last, memory, ahead);
  }
  for (int64_t half = 0; half * kTileRows < panel.columns; ++half)
    for (int64_t b = 0; b < p.blocks(); ++b)
      int8_wide_store(p, memory.sums + half / 2 * memory.group_sums + (4 * b + half % 2) * kTileSums, b,
                      panel.n + half * kTileRows, min64(kTileRows, panel.columns - half * kTileRows));
}

}  // namespace antiphon::ANTIPHON_ISA
