// Wide bfloat16 linear on AMX tiles; included by linear_wide.cpp where the instruction set has them.
//
// 32 rows of W meet 32 rows of x in four accumulator tiles, tiles of W loaded as its rows lie. k is walked in chunks
// so narrow that a panel's stays in the first-level cache while all rows of x pass by; sums wait in memory for the next
// one. Tiles of x come from the second-level cache in time by themselves: asking for them takes more slots than they
// are worth. W comes from memory and is asked for two chunks ahead, between the products. Where x does not stay in the
// second-level cache, a wider chunk of it does, for two to six panels. Every output is the same sum in the same order as
// in linear_amx.h, so a row has the same result in a prompt and in a decode step; one below 2^-126 is zero.
#pragma once

#include "activation_table.h"
#include "results_ahead.h"
#include "tiles.h"
#include "weights_ahead.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int64_t kDepth = 32;                        // columns of a tile
constexpr int64_t kTileElements = kTileRows * kDepth;
constexpr int64_t kWideRows = 2 * kTileRows;          // of W that meet a pair of blocks of x in four accumulators
constexpr int64_t kCachedElements = 5 << 17;          // of x that stay in the second-level cache beside a panel of W
constexpr int64_t kChunkDepths = 8, kAheadDepths = 2 * kChunkDepths;  // tiles along k
constexpr int64_t kCachedDepths = 64, kPanels = 6;    // of x where not all of it stays, and for how many panels at most
constexpr int64_t kLeastPanels = 2, kLeastWalks = 4;  // but so few that threads have this many walks, if they can
constexpr int64_t kPairSums = 4 * 256;                // [blocks of x][blocks of W][16 rows of W][16 rows of x]

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
  const bf16* w;     // [n, k], rows w_stride apart
  int64_t w_stride;
  const bf16* bias;  // or null
  bf16* out;         // [num_rows, n]
  bf16* packed_out;  // in place of out, with an activation: blocks of 16 rows as tiles
  Activation activation;
  int64_t num_rows, n, k;
};

// Sums of 32 rows of W, `stride` elements apart, times one or two blocks of x, += over `depths` of k.
template <int kBlocks>
inline void wide_tiles(const bf16* w, int64_t stride, const bf16* x, int64_t k, int64_t depths, bool first,
                       WeightsAhead& ahead, ResultsAhead results, float* sums) {
  first ? zero_sums<kBlocks>() : load_sums<kBlocks>(sums, 256, 2 * 256);
  const bf16* other = w + kTileRows * stride;
  for (int64_t i = 0; i < depths; ++i, w += kDepth, other += kDepth, x += kTileElements) {
    _tile_loadd(4, w, 2 * stride);
    _tile_loadd(6, x, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, other, 2 * stride);
    _tile_dpbf16ps(1, 5, 6);
    ahead.fetch();
    results.fetch();
    if constexpr (kBlocks == 2) {
      _tile_loadd(7, x + kTileRows * k, 64);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  store_sums<kBlocks>(sums, 256, 2 * 256);
}

// out[t][0, columns) = sums[.., t] + bias, of up to 32 columns.
inline void store_rows(const float* sums, const bf16* bias, int64_t rows, int64_t columns, bf16* out, int64_t stride) {
  __m512i v[2][16];
  vf shift[2];
  for (int64_t half = 0; half < 2; ++half) {
    for (int64_t r = 0; r < 16; ++r) v[half][r] = _mm512_load_si512(sums + 256 * half + 16 * r);
    transpose_words(v[half]);
    const int64_t held = min64(16, columns - 16 * half);
    shift[half] = bias && held > 0 ? load_upto(bias + 16 * half, held) : set1(0.0f);
  }
  const __mmask32 mask = static_cast<__mmask32>((uint64_t{1} << columns) - 1);
  for (int64_t t = 0; t < rows; ++t, out += stride) {
    saw(out, 2 * columns);
    _mm512_mask_storeu_epi16(out, mask, round_pair(add(_mm512_castsi512_ps(v[0][t]), shift[0]),
                                                   add(_mm512_castsi512_ps(v[1][t]), shift[1])));
  }
}

// Results of 32 rows of W, rounded, activated and rounded again, as the tile of x that they are to the next linear map.
inline void store_tile(const float* sums, const bf16* bias, const ActivationTable& activation, bf16* out) {
  const auto row = [&](int64_t i) {  // 16 results in words, their upper halves undefined
    const vf sum = add(load(sums + 16 * i), set1(bias ? widen(bias[i]) : 0.0f));
    return activation.of(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(sum)));
  };
  for (int64_t i = 0; i < 32; i += 2)
    _mm512_store_si512(out + 16 * i, _mm512_mask_blend_epi16(0xaaaaaaaa, row(i), _mm512_slli_epi32(row(i + 1), 16)));
}

// Results of rows [n, n + columns) of W, at most 32, for one block of x.
inline void store_results(const WideProblem& p, int64_t block, int64_t n, int64_t columns, const float* sums) {
  const bf16* bias = p.bias ? p.bias + n : nullptr;
  const int64_t row = block * kTileRows, tile = row * p.n + n / kDepth * kTileElements;
  if (p.activation != Activation::none)
    return store_tile(sums, bias, activation_table(p.activation), p.packed_out + tile);
  store_rows(sums, bias, min64(kTileRows, p.num_rows - row), columns, p.out + row * p.n + n, p.n);
}

// Where the results of one or two blocks of x go.
inline ResultsAhead results_ahead(const WideProblem& p, int64_t block, int64_t n, int64_t steps) {
  const int64_t row = block * kTileRows, rows = min64(kWideRows, p.num_rows - row), of_block = kTileRows * p.n * 2;
  if (p.activation != Activation::none)
    return {p.packed_out + row * p.n + n / kDepth * kTileElements, kTileBytes, of_block, rows, steps};
  return {p.out + row * p.n + n, p.n * 2, of_block, rows, steps};
}

// How W passes by x: so many panels of kWideRows rows at a time, `depths` tiles along k of all rows of x.
struct WideWalk {
  int64_t panels, depths;
};

inline WideWalk wide_walk(int64_t num_rows, int64_t n, int64_t k, int count) {
  if (num_rows * k <= kCachedElements) return {1, k / kDepth};
  return {max64(kLeastPanels, min64(kPanels, n / kWideRows / (kLeastWalks * count))), kCachedDepths};
}

// Sums of a panel, if they wait for the next chunk.
inline int64_t panel_sums(int64_t num_rows) { return (wide_blocks(num_rows) + 1) / 2 * kPairSums; }

// Bytes that wide_panels needs: its sums, and the last rows of W if they are fewer.
inline int64_t wide_memory(int64_t num_rows, int64_t k) {
  return kPanels * panel_sums(num_rows) * 4 + kWideRows * k * 2;
}

// Rows of W, at most kWideRows, as they lie: the results [n, n + columns).
struct WidePanel {
  const bf16* w;
  int64_t stride, n, columns;
};

// Steps of a chunk, between which the one after the next is asked for.
inline int64_t chunk_steps(const WideProblem& p) { return kChunkDepths * ((wide_blocks(p.num_rows) + 1) / 2); }

// The chunk of kWideRows rows that starts at w, or nothing.
inline WeightsAhead chunk_ahead(const WideProblem& p, const bf16* w) {
  return w ? WeightsAhead(w, p.w_stride * 2, kChunkDepths * kTileBytes, kWideRows, chunk_steps(p)) : WeightsAhead();
}

// Depths [begin, end) of a panel, its rows from there on at `w`, for all rows of x.
inline void wide_chunk(const WideProblem& p, const WidePanel& panel, const bf16* w, int64_t begin, int64_t end,
                       WeightsAhead ahead, float* sums) {
  const int64_t blocks = wide_blocks(p.num_rows), depths = p.k / kDepth;
  const int64_t step = begin > 0 || end < depths ? kPairSums : 0;  // sums of a single chunk need not wait
  for (int64_t b = 0; b < blocks; b += 2, sums += step) {
    const auto run = b + 1 < blocks ? wide_tiles<2> : wide_tiles<1>;
    const bool ends = end == depths;
    run(w, panel.stride, p.x + b * kTileRows * p.k + begin * kTileElements, p.k, end - begin, begin == 0, ahead,
        ends ? results_ahead(p, b, panel.n, end - begin) : ResultsAhead(), sums);
    if (!ends) continue;
    for (int64_t i = 0; i < min64(2, blocks - b); ++i) store_results(p, b + i, panel.n, panel.columns, sums + 512 * i);
  }
}

// Depths [begin, end) of a panel; `then` is where W is read on after them, or null.
inline void wide_chunks(const WideProblem& p, const WidePanel& panel, int64_t begin, int64_t end, const bf16* then,
                        float* sums) {
  for (int64_t from = begin; from < end; from += kChunkDepths) {
    const int64_t later = from + kAheadDepths;
    const bf16* w = later < end ? panel.w + later * kDepth : then ? then + (later - end) * kDepth : nullptr;
    wide_chunk(p, panel, panel.w + from * kDepth, from, min64(from + kChunkDepths, end), chunk_ahead(p, w), sums);
  }
}

// Rows [n, n + columns) of W, as many as a walk takes at a time, for all rows of x; `then` as above.
inline void wide_panels(const WideProblem& p, const WideWalk& walk, int64_t n, int64_t columns, const bf16* then,
                        float* memory) {
  const int64_t depths = p.k / kDepth, whole = columns / kWideRows * kWideRows, waiting = panel_sums(p.num_rows);
  bf16* rest = reinterpret_cast<bf16*>(memory + kPanels * waiting);
  if (whole < columns) {
    for (int64_t i = whole; i < columns; ++i)
      std::memcpy(rest + (i - whole) * p.k, p.w + (n + i) * p.w_stride, p.k * 2);
    std::memset(rest + (columns - whole) * p.k, 0, (whole + kWideRows - columns) * p.k * 2);
  }
  const auto panel = [&](int64_t i) {
    return WidePanel{i < whole ? p.w + (n + i) * p.w_stride : rest, i < whole ? p.w_stride : p.k, n + i,
                     min64(kWideRows, columns - i)};
  };
  for (int64_t begin = 0; begin < depths; begin += walk.depths)
    for (int64_t i = 0; i < columns; i += kWideRows) {
      const int64_t end = min64(begin + walk.depths, depths);
      const bf16* next = i + kWideRows < columns ? panel(i + kWideRows).w + begin * kDepth
                         : end < depths          ? panel(0).w + end * kDepth
                                                 : then;
      wide_chunks(p, panel(i), begin, end, next, memory + i / kWideRows * waiting);
    }
}

// Rows that are multiplied with all of W before the next ones: parts of like size that fit the second-level cache beside
// a panel of W, but enough to be worth reading W for.
inline int64_t rows_at_once(int64_t rows, int64_t k) {
  const int64_t most = max64(256, (int64_t{1} << 19) / k), parts = max64(1, (rows + most - 1) / most);
  return ((rows + parts - 1) / parts + kWideRows - 1) / kWideRows * kWideRows;
}

// Up to `count` rows from `row` on, a multiple of 16.
inline WideProblem rows_of(WideProblem p, int64_t row, int64_t count) {
  p.x += row * p.k;
  p.out += row * p.n;
  if (p.packed_out) p.packed_out += row * p.n;
  p.num_rows = min64(count, p.num_rows - row);
  return p;
}

static_assert(wide_columns(DType::bf16, kDepth) == kDepth, "blocks of 16 rows lie 16 k elements apart, in a pass too");

inline WideProblem wide_branch(const LinearWideArgs& a, int64_t which) {
  const int64_t first = which == 0 ? 0 : a.split, skipped = which == 0 ? 0 : wide_blocks(a.split);
  return {static_cast<const bf16*>(a.workspace) + skipped * kTileRows * a.k,
          a.weight ? static_cast<const bf16*>(a.weight) + which * a.n * a.w_stride : nullptr,
          a.w_stride,
          a.bias ? static_cast<const bf16*>(a.bias) + which * a.n : nullptr,
          static_cast<bf16*>(a.out) + first * a.n,
          static_cast<bf16*>(a.packed_out),
          a.activation,
          (which == 0 ? a.split : a.num_rows) - first, a.n, a.k};
}

// panels(problem, walk, n, columns, next, branch) for everything that this thread claims, as many rows of W as a walk
// takes at a time; `next` is the first row after them if threads are equally fast, or past the last one.
template <class Panels>
inline void claim_wide_panels(const LinearWideArgs& a, int count, const Panels& panels) {
  const auto claim = [&] { return a.next->fetch_add(1, std::memory_order_relaxed); };
  configure_tiles(16);
  int64_t unit = claim(), first = 0;
  for (int64_t branch = 0; branch < 2; ++branch) {
    const WideProblem whole = wide_branch(a, branch);
    const int64_t step = rows_at_once(whole.num_rows, a.k);
    const WideWalk walk = wide_walk(min64(step, whole.num_rows), a.n, a.k, count);
    const int64_t columns = walk.panels * kWideRows, units = (a.n + columns - 1) / columns;
    for (int64_t row = 0; row < whole.num_rows; row += step, first += units) {
      const WideProblem p = rows_of(whole, row, step);
      for (; unit < first + units; unit = claim()) {
        const int64_t n = (unit - first) * columns;
        panels(p, walk, n, min64(columns, a.n - n), n + count * columns, branch);
      }
    }
  }
  _tile_release();
}

}  // namespace antiphon::ANTIPHON_ISA
