// Wide bfloat16 linear on AMX tiles; included by linear_wide.cpp where the instruction set has them.
//
// 32 rows of W meet 32 rows of x in four accumulator tiles. A panel of rows of W is copied to tiles first, for all rows of x:
// tiles of 1 KiB load several times faster than 16 rows of W, which lie pages apart and often in the same few sets of the
// first-level cache, and walking 32 rows side by side is what the prefetcher follows. Every output is the same sum in
// the same order as in linear_amx.h, so a row has the same result in a prompt and in a decode step. Within a panel, k is
// walked in chunks; of each, a pair of blocks of x stays in the first-level cache. The sums wait in memory meanwhile.
#pragma once

#include "tiles.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int64_t kDepth = 32;                        // columns of a tile
constexpr int64_t kTileElements = kTileRows * kDepth;
constexpr int64_t kWideRows = 2 * kTileRows;          // of W that meet a pair of blocks of x in four accumulators
constexpr int64_t kGroups = 2;                        // of so many rows in a panel
constexpr int64_t kPanelRows = kGroups * kWideRows;
constexpr int64_t kPanelDepths = 96;                  // copied at once, 384 KiB of the second-level cache
constexpr int64_t kChunkDepths = 16;

inline int64_t wide_blocks(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }

// 16 rows of x as tiles: [k / 32][16 pairs of columns][16 rows][2], zero past `rows`.
inline void pack_block(const bf16* x, int64_t stride, int64_t rows, int64_t k, bf16* out) {
  for (int64_t i = 0; i < k; i += kDepth, out += kTileElements) {
    __m512i words[16];
    for (int64_t r = 0; r < kTileRows; ++r)
      words[r] = r < rows ? _mm512_loadu_si512(x + r * stride + i) : _mm512_setzero_si512();
    transpose_words(words);
    for (int64_t j = 0; j < 16; ++j) _mm512_storeu_si512(out + j * kDepth, words[j]);
  }
}

struct WideProblem {
  const bf16* x;     // blocks of 16 rows as tiles
  const bf16* w;     // [n, k]
  const bf16* bias;  // or null
  bf16* out;         // [num_rows, n]
  int64_t num_rows, n, k;
};

// sums[x block][W block][16][16] += 32 rows of W times one or two blocks of x, over `depths` of k.
template <int kBlocks>
inline void wide_tiles(const bf16* w, const bf16* x, int64_t k, int64_t depths, bool first, float* sums) {
  first ? zero_sums<kBlocks>() : load_sums<kBlocks>(sums, 256, 2 * 256);
  for (int64_t i = 0; i < depths; ++i, w += 2 * kTileElements, x += kTileElements) {
    _tile_loadd(4, w, 64);
    _tile_loadd(6, x, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, w + kTileElements, 64);
    _tile_dpbf16ps(1, 5, 6);
    if constexpr (kBlocks == 2) {
      _tile_loadd(7, x + kTileRows * k, 64);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  store_sums<kBlocks>(sums, 256, 2 * 256);
}

// out[t][0, columns) = sums[.., t] + bias
inline void store_block(const float* sums, const bf16* bias, int64_t rows, int64_t columns, bf16* out, int64_t out_stride) {
  __m512i v[16];
  for (int r = 0; r < 16; ++r) v[r] = _mm512_load_si512(sums + 16 * r);
  transpose_words(v);
  const vf shift = bias ? load_upto(bias, columns) : set1(0.0f);
  for (int64_t t = 0; t < rows; ++t)
    store_upto(out + t * out_stride, add(_mm512_castsi512_ps(v[t]), shift), columns);
}

// The calling thread's memory: sums of a panel, [group][blocks of x][2][16][16], and its tiles of W, [group][depth][2][16][32].
struct WideMemory {
  int64_t group_sums, group_tiles;
  float* sums;
  bf16* tiles;
  WideMemory(int64_t num_rows, int64_t k)
      : group_sums(wide_blocks(num_rows) * 2 * 256), group_tiles(min64(k / kDepth, kPanelDepths) * 2 * kTileElements) {
    sums = static_cast<float*>(scratch(kGroups * (group_sums * 4 + group_tiles * 2)));
    tiles = reinterpret_cast<bf16*>(sums + kGroups * group_sums);
  }
};

// Columns [begin, end) of up to 32 rows of W as tiles [k / 32][2][16][32], zero past `rows`.
inline void copy_group(const bf16* w, int64_t k, int64_t rows, int64_t begin, int64_t end, bf16* out) {
  if (rows < kWideRows) std::memset(out, 0, (end - begin) * kWideRows * sizeof(bf16));
  for (int64_t i = begin; i < end; i += kDepth, out += 2 * kTileElements)
    for (int64_t r = 0; r < rows; ++r) _mm512_store_si512(out + r * kDepth, _mm512_loadu_si512(w + r * k + i));
}

// Columns [n, n + columns) of the result, columns <= kPanelRows, for all rows of x.
inline void wide_panel(const WideProblem& p, int64_t n, int64_t columns, const WideMemory& memory) {
  const int64_t blocks = wide_blocks(p.num_rows), depths = p.k / kDepth, groups = (columns + kWideRows - 1) / kWideRows;
  for (int64_t first = 0; first < depths; first += kPanelDepths) {
    const int64_t last = min64(first + kPanelDepths, depths);
    for (int64_t g = 0; g < groups; ++g)
      copy_group(p.w + (n + g * kWideRows) * p.k, p.k, min64(kWideRows, columns - g * kWideRows), first * kDepth,
                 last * kDepth, memory.tiles + g * memory.group_tiles);
    for (int64_t begin = first; begin < last; begin += kChunkDepths) {
      const int64_t count = min64(kChunkDepths, last - begin);
      for (int64_t b = 0; b < blocks; b += 2) {
        const auto run = b + 1 < blocks ? wide_tiles<2> : wide_tiles<1>;
        for (int64_t g = 0; g < groups; ++g)
          run(memory.tiles + g * memory.group_tiles + (begin - first) * 2 * kTileElements,
              p.x + b * kTileRows * p.k + begin * kTileElements, p.k, count, begin == 0,
              memory.sums + g * memory.group_sums + b * 2 * 256);
      }
    }
  }
  for (int64_t half = 0; half * kTileRows < columns; ++half)
    for (int64_t b = 0; b < blocks; ++b)
      store_block(memory.sums + half / 2 * memory.group_sums + (2 * b + half % 2) * 256,
                  p.bias ? p.bias + n + kTileRows * half : nullptr, min64(kTileRows, p.num_rows - b * kTileRows),
                  min64(kTileRows, columns - kTileRows * half), p.out + b * kTileRows * p.n + n + kTileRows * half, p.n);
}

}  // namespace antiphon::ANTIPHON_ISA
