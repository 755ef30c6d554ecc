// Compact weights on AMX tiles; included by linear_compact.cpp where the instruction set has them.
//
// 32 rows of W are widened 128 columns at a time into the first-level cache, as tiles, and multiplied from there: the same
// products in the same order as in linear_amx.h and linear_wide_amx.h. Widening takes a fifth of the time in which memory
// brings the bytes, so what counts for one row of x is that they are 12 bits a weight.
#pragma once

#include "compact_rows.h"
#include "linear_amx.h"
#include "linear_wide_amx.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int64_t kCompactRows = 2 * kTileRows, kCompactDepths = kCompactGroup / kDepth;
constexpr int64_t kCompactDepthElements = kCompactRows * kDepth;  // of two tiles
constexpr int64_t kCompactAheadBytes = 2 * kCompactGroupBytes;
constexpr int64_t kFewBlocks = 3;  // of x whose sums with 32 rows of W are all held in tiles

// Rows of W of one branch, numbered from its first one.
struct CompactBranch {
  CompactBranch(const uint8_t* weight, const int32_t* codes, int64_t which, int64_t n, int64_t k)
      : bytes(weight + which * n * compact_row_bytes(k)), codes(codes), first(which * n),
        row_bytes(compact_row_bytes(k)), upper(codes) {}

  const uint8_t* bytes;
  const int32_t* codes;
  int64_t first, row_bytes;  // first: among the rows of all branches
  UpperBytes upper;
};

// kCompactRows rows of W, `run` rows apart from row n on; where fewer are left the last one stands for them.
struct CompactLanes {
  CompactLanes(const CompactBranch& w, int64_t n, int64_t run, int64_t last) : w(w) {
    for (int64_t r = 0; r < kCompactRows; ++r) {
      const int64_t row = min64(n + r * run, last);
      lanes[r] = w.bytes + row * w.row_bytes;
      at[r] = w.codes[kCompactTableWords + w.first + row];
      end[r] = w.codes[kCompactTableWords + w.first + row + 1];
      columns[r] = column(r);
    }
  }

  // From column `begin` on.
  void seek(int64_t begin) {
    for (int64_t r = 0; r < kCompactRows; ++r) {
      while (column(r) < begin) ++at[r];
      columns[r] = column(r);
    }
  }

  // Group g of all rows: row r, depth d at out[d * depth + r * row].
  void widen(int64_t g, bf16* out, int64_t depth, int64_t row) {
    for (int64_t r = 0; r < kCompactRows; ++r)
      widen_group(lanes[r] + g * kCompactGroupBytes, w.upper, out + r * row, depth);
    patch(g, out, depth, row);
  }

  // Rows [first, last) of group g but for their escapes, as tiles; what lies `ahead` bytes on is asked for, unless 0.
  void widen_rows(int64_t g, int64_t first, int64_t last, bf16* tiles, int64_t ahead) const {
    for (int64_t r = first; r < last; ++r) {
      const uint8_t* group = lanes[r] + g * kCompactGroupBytes;
      if (ahead)
        for (int64_t i = 0; i < kCompactGroupBytes; i += 64) prefetch(group + ahead + i);
      widen_group(group, w.upper, tiles + r * kDepth, kCompactDepthElements);
    }
  }

  // The escapes of group g.
  void patch(int64_t g, bf16* out, int64_t depth, int64_t row) {
    const __m512i next = _mm512_set1_epi32(static_cast<int32_t>((g + 1) * kCompactGroup));
    const __mmask16 low = _mm512_cmplt_epi32_mask(_mm512_load_si512(columns), next);
    const __mmask16 high = _mm512_cmplt_epi32_mask(_mm512_load_si512(columns + 16), next);
    for (uint32_t rows = low | static_cast<uint32_t>(high) << 16; rows; rows &= rows - 1) {
      const int64_t r = __builtin_ctz(rows);
      for (; column(r) < (g + 1) * kCompactGroup; ++at[r]) {
        const int64_t i = column(r) - g * kCompactGroup;
        bf16& x = out[i / kDepth * depth + r * row + i % kDepth];
        x = with_upper_byte(x, w.codes[at[r]]);
      }
      columns[r] = column(r);
    }
  }

  int32_t column(int64_t r) const { return at[r] < end[r] ? w.codes[at[r]] >> 8 : INT32_MAX; }

  const CompactBranch& w;
  const uint8_t* lanes[kCompactRows];
  int32_t at[kCompactRows], end[kCompactRows];  // of the next escape
  alignas(64) int32_t columns[kCompactRows];    // that it stands in
};

// multiply(depth, tiles) for all depths of 32 rows of W, in order. While a group is widened the one before it is
// multiplied, a depth for every eight rows, and what comes kCompactAheadBytes on is asked for; past the first `until`
// bytes of the lanes what comes `beyond` on, unless 0.
template <class Multiply>
inline void walk_groups(CompactLanes& lanes, int64_t k, int64_t until, int64_t beyond, const Multiply& multiply) {
  constexpr int64_t kShare = kCompactRows / kCompactDepths;
  alignas(64) bf16 tiles[2][kCompactDepths * kCompactDepthElements];
  const int64_t groups = k / kCompactGroup;
  for (int64_t g = 0; g <= groups; ++g) {
    bf16* widened = tiles[g % 2];
    const int64_t ahead = g * kCompactGroupBytes + kCompactAheadBytes < until ? kCompactAheadBytes : beyond;
    for (int64_t d = 0; d < kCompactDepths; ++d) {
      if (g > 0) multiply((g - 1) * kCompactDepths + d, tiles[(g - 1) % 2] + d * kCompactDepthElements);
      order_tiles();
      if (g < groups) lanes.widen_rows(g, d * kShare, (d + 1) * kShare, widened, ahead);
      order_tiles();
    }
    if (g < groups) lanes.patch(g, widened, kCompactDepthElements, kDepth);
    order_tiles();
  }
}

// Sums of 32 rows of W, `run` of them apart, as tile_block_pair's.
inline void compact_block_pair(CompactLanes& lanes, int64_t k, int64_t run, int64_t row, const uint32_t* pairs,
                               int64_t num_rows, float (*sums)[256]) {
  const int64_t x_stride = 4 * num_rows, row_bytes = compact_row_bytes(k);
  const int64_t beyond = kCompactAheadBytes + (kCompactRows - 1) * run * row_bytes;
  _tile_zero(0);
  _tile_zero(1);
  walk_groups(lanes, k, (run - row) * row_bytes, beyond, [&](int64_t depth, const bf16* w) {
    _tile_loadd(6, pairs + depth * kTileK / 2 * num_rows, x_stride);
    _tile_loadd(4, w, kTileBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, w + kTileElements, kTileBytes);
    _tile_dpbf16ps(1, 5, 6);
  });
  _tile_stored(0, sums[0], x_stride);
  _tile_stored(1, sums[1], x_stride);
  order_tiles();
}

// Rows of one branch's W against x; out rows out_stride apart.
inline void tile_linear_compact(const bf16* x, int64_t x_stride, int64_t num_rows, const CompactBranch& w, int64_t k,
                                const bf16* bias, bf16* out, int64_t out_stride, RowUnits units) {
  auto* pairs = static_cast<uint32_t*>(scratch(2 * k * num_rows));
  interleave_pairs(x, x_stride, num_rows, k, pairs);
  order_tiles();
  configure_tiles(num_rows);
  alignas(64) float sums[2][256];
  for (Range range; units.take(range);)
    for (int64_t n = range.begin; n < range.end;) {
      const int64_t run = rows_per_run(w.row_bytes, kCompactRows, range.end - n);
      const int64_t rows = min64(kCompactRows, range.end - n);
      for (int64_t row = 0; row < run; ++row) {
        CompactLanes lanes(w, n + row, run, range.end - 1);
        compact_block_pair(lanes, k, run, row, pairs, num_rows, sums);
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t t = 0; t < num_rows; ++t) {
            const int64_t at = n + row + r * run;
            const float sum = sums[r / kTileRows][r % kTileRows * num_rows + t];
            out[t * out_stride + at] = round_bf16(sum + (bias ? widen(bias[at]) : 0.0f));
          }
      }
      n += rows * run;
    }
  _tile_release();
}

// Tiles 2 b and 2 b + 1 += two tiles of W times block b of x, `block` elements behind the one before. Tiles of x come
// from the second-level cache and are not to push W out of the first.
template <int kBlocks>
inline void multiply_few(const bf16* w, const bf16* x, int64_t block) {
  _tile_loadd(6, w, kTileBytes);
  _tile_stream_loadd(7, x, kTileBytes);
  _tile_dpbf16ps(0, 6, 7);
  if constexpr (kBlocks > 1) {
    _tile_stream_loadd(7, x + block, kTileBytes);
    _tile_dpbf16ps(2, 6, 7);
  }
  if constexpr (kBlocks > 2) {
    _tile_stream_loadd(7, x + 2 * block, kTileBytes);
    _tile_dpbf16ps(4, 6, 7);
  }
  _tile_loadd(6, w + kTileElements, kTileBytes);  // against the blocks in reverse: the last one is there
  if constexpr (kBlocks > 2) {
    _tile_dpbf16ps(5, 6, 7);
    _tile_stream_loadd(7, x + block, kTileBytes);
  }
  if constexpr (kBlocks > 1) {
    _tile_dpbf16ps(3, 6, 7);
    _tile_stream_loadd(7, x, kTileBytes);
  }
  _tile_dpbf16ps(1, 6, 7);
}

// compact_panels for 32 rows of W and up to kFewBlocks blocks of x, which wait for memory rather than for tiles: sums
// stay where they are until the end of k.
template <int kBlocks>
inline void few_rows(const WideProblem& p, const CompactBranch& w, int64_t n, int64_t columns, int64_t next,
                     float* sums) {
  CompactLanes lanes(w, n, 1, p.n - 1);
  const int64_t beyond = next < p.n ? kCompactAheadBytes + (next - n - 1) * w.row_bytes : 0;
  constexpr int kPaired = kBlocks > 1 ? 2 : 1;
  zero_sums<kPaired>();
  if constexpr (kBlocks > 2) {
    _tile_zero(4);
    _tile_zero(5);
  }
  walk_groups(lanes, p.k, w.row_bytes, beyond, [&](int64_t depth, const bf16* tiles) {
    multiply_few<kBlocks>(tiles, p.x + depth * kTileElements, kTileRows * p.k);
  });
  constexpr int64_t kBlockSums = kPairSums / 2;
  store_sums<kPaired>(sums, kBlockSums / 2, kBlockSums);
  if constexpr (kBlocks > 2) {
    _tile_stored(4, sums + 2 * kBlockSums, 64);
    _tile_stored(5, sums + 2 * kBlockSums + kBlockSums / 2, 64);
  }
  order_tiles();
  for (int64_t b = 0; b < kBlocks; ++b) store_results(p, b, n, columns, sums + b * kBlockSums);
}

// Sums of panels and a chunk of one as rows of bfloat16.
inline int64_t compact_wide_memory(int64_t num_rows) {
  return kPanels * panel_sums(num_rows) * 4 + kWideRows * kChunkDepths * kTileBytes;
}

// wide_panels for compact weights; next: the first row after these, or past the last one.
inline void compact_panels(const WideProblem& p, const CompactBranch& w, const WideWalk& walk, int64_t n,
                           int64_t columns, int64_t next, float* memory) {
  const int64_t blocks = wide_blocks(p.num_rows);
  if (blocks <= kFewBlocks && columns <= kWideRows && walk.depths == p.k / kDepth) {
    const auto run = blocks == 1 ? few_rows<1> : blocks == 2 ? few_rows<2> : few_rows<3>;
    return run(p, w, n, columns, next, memory);
  }
  constexpr int64_t kStride = kChunkDepths * kDepth, kGroups = kStride / kCompactGroup;
  constexpr int64_t kBytes = kGroups * kCompactGroupBytes;
  const int64_t depths = p.k / kDepth, waiting = panel_sums(p.num_rows);
  bf16* rows = reinterpret_cast<bf16*>(memory + kPanels * waiting);
  // Byte 0 of the chunk that starts at `depth`, a multiple of whole groups, of the row.
  const auto chunk = [&](int64_t row, int64_t depth) {
    return w.bytes + row * w.row_bytes + depth / kCompactDepths * kCompactGroupBytes;
  };
  for (int64_t begin = 0; begin < depths; begin += walk.depths)
    for (int64_t i = 0; i < columns; i += kWideRows) {
      const int64_t end = min64(begin + walk.depths, depths);
      const WidePanel panel{rows, kStride, n + i, min64(kWideRows, columns - i)};
      CompactLanes lanes(w, panel.n, 1, p.n - 1);
      lanes.seek(begin * kDepth);
      const bool more = i + kWideRows < columns || end < depths;
      const int64_t then_row = i + kWideRows < columns ? panel.n + kWideRows : end < depths ? n : next;
      const int64_t then_depth = i + kWideRows < columns ? begin : end < depths ? end : 0;
      for (int64_t from = begin; from < end; from += kChunkDepths) {
        const int64_t to = min64(from + kChunkDepths, end), later = from + kAheadDepths;
        const uint8_t* ahead = later < end ? chunk(panel.n, later)
                               : more || then_row < p.n ? chunk(then_row, then_depth + later - end)
                                                        : nullptr;
        for (int64_t d = from; d < to; d += kCompactDepths)
          lanes.widen(d / kCompactDepths, rows + (d - from) * kDepth, kDepth, kStride);
        wide_chunk(p, panel, rows, from, to,
                   ahead ? WeightsAhead(ahead, w.row_bytes, kBytes, kWideRows, chunk_steps(p)) : WeightsAhead(),
                   memory + i / kWideRows * waiting);
      }
    }
}


}  // namespace antiphon::ANTIPHON_ISA
