// Wide bfloat16 linear on AMX tiles; included by linear_wide.cpp where the instruction set has them.
//
// 32 rows of W meet 32 rows of x in four accumulator tiles. The tiles of W come straight from its row-major memory, and
// every output is the same sum in the same order as in linear_amx.h, so a row has the same result in a prompt and in a
// decode step. k is walked in chunks: of each, a panel of rows of W meets all of x, whose pairs of blocks fit the
// first-level cache; the sums wait in memory meanwhile.
#pragma once

#include "tiles.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int64_t kDepth = 32;                        // columns of a tile
constexpr int64_t kTileElements = kTileRows * kDepth;
constexpr int64_t kWideRows = 2 * kTileRows;          // of W that meet a pair of blocks of x in four accumulators
constexpr int64_t kGroups = 4;                        // of so many rows in a panel
constexpr int64_t kPanelRows = kGroups * kWideRows;
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

// A chunk of 32 rows of W: depth i begins i * step elements on, the second 16 rows `block` elements on, rows are `stride`
// bytes apart.
struct WideRows {
  const bf16* first;
  int64_t step, block, stride;
};

// sums[x block][W block][16][16] += 32 rows of W times one or two blocks of x, over `depths` of k.
template <int kBlocks>
inline void wide_tiles(const WideRows& w, const bf16* x, int64_t k, int64_t depths, float* sums) {
  _tile_loadd(0, sums, 64);
  _tile_loadd(1, sums + 256, 64);
  if constexpr (kBlocks == 2) {
    _tile_loadd(2, sums + 2 * 256, 64);
    _tile_loadd(3, sums + 3 * 256, 64);
  }
  for (int64_t i = 0; i < depths; ++i) {
    _tile_loadd(4, w.first + i * w.step, w.stride);
    _tile_loadd(5, w.first + i * w.step + w.block, w.stride);
    _tile_loadd(6, x + i * kTileElements, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 5, 6);
    if constexpr (kBlocks == 2) {
      _tile_loadd(7, x + i * kTileElements + kTileRows * k, 64);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 256, 64);
  if constexpr (kBlocks == 2) {
    _tile_stored(2, sums + 2 * 256, 64);
    _tile_stored(3, sums + 3 * 256, 64);
  }
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

// The calling thread's memory: sums of a panel, [group][blocks of x][2][16][16], and a chunk of its last rows.
struct WideMemory {
  int64_t group_sums;
  float* sums;
  bf16* rows;
  explicit WideMemory(int64_t num_rows) : group_sums(wide_blocks(num_rows) * 2 * 256) {
    sums = static_cast<float*>(scratch(kGroups * group_sums * 4 + kWideRows * kChunkDepths * kDepth * 2));
    rows = reinterpret_cast<bf16*>(sums + kGroups * group_sums);
  }
};

// Depths [begin, end) of the panel's rows of W: as they lie in memory, the last ones copied where they are not 32.
inline void panel_rows(const WideProblem& p, int64_t n, int64_t columns, int64_t begin, int64_t end, bf16* memory,
                       WideRows* groups) {
  for (int64_t r = 0; r < columns; r += kWideRows, ++groups) {
    const bf16* w = p.w + (n + r) * p.k + begin * kDepth;
    *groups = {w, kDepth, kTileRows * p.k, 2 * p.k};
    if (columns - r >= kWideRows) continue;
    std::memset(memory, 0, kWideRows * (end - begin) * kDepth * sizeof(bf16));
    for (int64_t row = 0; row < columns - r; ++row)
      std::memcpy(memory + row * (end - begin) * kDepth, w + row * p.k, (end - begin) * kDepth * sizeof(bf16));
    *groups = {memory, kDepth, kTileRows * (end - begin) * kDepth, 2 * (end - begin) * kDepth};
  }
}

// Fetches a share of the panel's next chunk of W to the second-level cache while this one is multiplied.
inline void fetch_chunk(const WideProblem& p, int64_t n, int64_t columns, int64_t depth, int64_t share, int64_t shares) {
  if (depth * kDepth >= p.k) return;
  for (int64_t r = share * columns / shares; r < (share + 1) * columns / shares; ++r) {
    const char* row = reinterpret_cast<const char*>(p.w + (n + r) * p.k + depth * kDepth);
    for (int64_t i = 0; i < kChunkDepths; ++i) _mm_prefetch(row + i * kTileBytes, _MM_HINT_T1);
  }
}

// Columns [n, n + columns) of the result, columns <= kPanelRows, for all rows of x.
inline void wide_panel(const WideProblem& p, int64_t n, int64_t columns, const WideMemory& memory) {
  const int64_t blocks = wide_blocks(p.num_rows), depths = p.k / kDepth, shares = (blocks + 1) / 2;
  const int64_t groups = (columns + kWideRows - 1) / kWideRows;
  std::memset(memory.sums, 0, groups * memory.group_sums * sizeof(float));
  for (int64_t begin = 0; begin < depths; begin += kChunkDepths) {
    const int64_t end = min64(begin + kChunkDepths, depths);
    WideRows rows[kGroups];
    panel_rows(p, n, columns, begin, end, memory.rows, rows);
    for (int64_t b = 0; b < blocks; b += 2) {
      const bf16* x = p.x + b * kTileRows * p.k + begin * kTileElements;
      const auto run = b + 1 < blocks ? wide_tiles<2> : wide_tiles<1>;
      fetch_chunk(p, n, columns, end, b / 2, shares);
      for (int64_t g = 0; g < groups; ++g)
        run(rows[g], x, p.k, end - begin, memory.sums + g * memory.group_sums + b * 2 * 256);
    }
  }
  for (int64_t half = 0; half * kTileRows < columns; ++half)
    for (int64_t b = 0; b < blocks; ++b)
      store_block(memory.sums + half / 2 * memory.group_sums + (2 * b + half % 2) * 256,
                  p.bias ? p.bias + n + kTileRows * half : nullptr, min64(kTileRows, p.num_rows - b * kTileRows),
                  min64(kTileRows, columns - kTileRows * half), p.out + b * kTileRows * p.n + n + kTileRows * half, p.n);
}

}  // namespace antiphon::ANTIPHON_ISA
