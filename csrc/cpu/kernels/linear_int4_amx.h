// int4 skinny linear on AMX tiles; included by linear_int4.cpp where the instruction set has them.
//
// 32 rows of W meet both planes of 8 rows of x, a group of 128 columns a step. A step is four stages that work on
// groups one apart, their instructions mixed, so that no stage waits for another's stores or products:
//     unpack group s + 1 | multiply group s | store the products of group s - 1 | scale and add those of group s - 2.
// Tile instructions lie apart, among vector ones: on a slow core, one right after another takes up to twice as long.
// The same exact integers are scaled and added in float32 in the same order as in linear_int4_vnni.h.
#pragma once

#include <utility>

#include "linear_int4_vnni.h"
#include "tiles.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int64_t kInt4Lanes = 2 * kTileRows;                   // rows of W side by side: a panel
constexpr int64_t kInt4Unpacked = 2 * kInt4Lanes * kTileBytes;  // bytes of a group of them as tiles
constexpr int64_t kInt4Streams = 8;     // that fetch W, side by side
constexpr int64_t kInt4Piece = 8192;    // bytes of each, at least, so that a stream stays in its pages
constexpr int64_t kInt4Apart = 320;     // bytes between buffers whose addresses must not be equal in the low 12 bits
constexpr float kInt4Unit = 1.0f / 16;  // of the unpacked weights, which keep their place in the upper half of a byte

// What one step works on. w: the group to unpack, rows `stride` bytes apart; ahead: what to fetch from memory
// meanwhile, in streams `apart` bytes apart; tiles, x: the group to multiply; stored, products: where those of the last
// step go and those of the step before are, [4][8 rows][16].
struct Int4Step {
  const uint8_t *w, *ahead;
  int64_t stride, apart;
  uint8_t* unpacked;
  const uint8_t* tiles;
  const int8_t* x;
  int32_t* stored;
  const int32_t* products;
  vf factors[2];
};

// The panels after those at work, fetched to the second-level cache as streams side by side: one stream is a fifth
// slower.
struct Int4Ahead {
  const uint8_t *next, *end;  // of what is still to be fetched
  int64_t unit;               // bytes at a time, whole panels
  int64_t at = 0, apart = 0;

  void advance(Int4Step& s) {
    constexpr int64_t kStep = kInt4Lanes * kTileBytes / kInt4Streams;  // bytes of every stream
    if (at + kStep > apart) {
      next += kInt4Streams * apart;
      apart = min64(unit, end - next) / (kStep * kInt4Streams) * kStep;
      at = 0;
    }
    s.ahead = apart ? next + at : end;
    s.apart = apart;
    at += kStep;
  }
};

// 64 bytes each of rows [kFirst, kFirst + 2): low halves to tiles[0, 128), high halves to tiles[1024, 1152).
template <int64_t kFirst>
inline void unpack_two(const Int4Step& s, uint8_t* tiles) {
  const __m512i mask = _mm512_set1_epi8(-16), sign = _mm512_set1_epi8(-128);
  const auto signed_upper = [&](__m512i v) {
    return _mm512_ternarylogic_epi32(v, mask, sign, 0x6a);  // (v & mask) ^ sign
  };
  for (int64_t r = 0; r < 2; ++r) {
    const __m512i raw = _mm512_loadu_si512(s.w + (kFirst + r) * s.stride);
    const int64_t stream = (kFirst + r) % kInt4Streams, line = (kFirst + r) / kInt4Streams;
    _mm_prefetch(s.ahead + stream * s.apart + line * kTileBytes, _MM_HINT_T1);
    _mm512_store_si512(tiles + 64 * r, signed_upper(_mm512_slli_epi16(raw, 4)));
    _mm512_store_si512(tiles + 64 * r + 1024, signed_upper(raw));
  }
}

// sum += rows r | r + 4 of products[8][16]: (256 high + low) * the row's factor.
inline vf int4_scaled(const int32_t* products, int r, vf factor, vf sum) {
  const vf a = _mm512_cvtepi32_ps(_mm512_load_si512(products + 16 * r));
  const vf b = _mm512_cvtepi32_ps(_mm512_load_si512(products + 16 * (r + 4)));
  const vf exact = fmadd(_mm512_shuffle_f32x4(a, b, 0x44), set1(256.0f), _mm512_shuffle_f32x4(a, b, 0xee));
  return fmadd(exact, factor, sum);  // rounded once before, as the integer would be
}

// The tile instruction of one of a step's 16 slots. Steps take turns with the tiles of sums; tile numbers are literals.
template <int kTurn, int S>
inline void int4_tile_slot(const Int4Step& s) {
  if constexpr (S == 0) _tile_loadd(6, s.x, 64);
  if constexpr (S == 1) _tile_loadd(4, s.tiles, 64);
  if constexpr (S == 2) _tile_loadd(5, s.tiles + 2048, 64);
  if constexpr (S == 7) _tile_loadd(7, s.x + 1024, 64);
  if constexpr (S == 8) _tile_loadd(4, s.tiles + 1024, 64);
  if constexpr (S == 10) _tile_loadd(5, s.tiles + 3072, 64);
  if constexpr (kTurn == 0) {
    if constexpr (S == 3) { _tile_zero(0); _tile_dpbssd(0, 4, 6); }
    if constexpr (S == 4) _tile_stored(2, s.stored, 64);
    if constexpr (S == 5) { _tile_zero(1); _tile_dpbssd(1, 5, 6); }
    if constexpr (S == 9) _tile_stored(3, s.stored + 256, 64);
    if constexpr (S == 11) _tile_dpbssd(0, 4, 7);
    if constexpr (S == 13) _tile_dpbssd(1, 5, 7);
  } else {
    if constexpr (S == 3) { _tile_zero(2); _tile_dpbssd(2, 4, 6); }
    if constexpr (S == 4) _tile_stored(0, s.stored, 64);
    if constexpr (S == 5) { _tile_zero(3); _tile_dpbssd(3, 5, 6); }
    if constexpr (S == 9) _tile_stored(1, s.stored + 256, 64);
    if constexpr (S == 11) _tile_dpbssd(2, 4, 7);
    if constexpr (S == 13) _tile_dpbssd(3, 5, 7);
  }
}

// A sixteenth of a step: a tile instruction, two rows to unpack, two rows of products to scale and add.
template <int kTurn, int S>
inline void int4_slot(const Int4Step& s, vf (&sums)[4][4]) {
  int4_tile_slot<kTurn, S>(s);
  unpack_two<2 * S>(s, s.unpacked + S / 8 * 2048 + S % 8 * 128);
  constexpr int Q = S / 4, r = S % 4;
  const vf f = s.factors[Q / 2], four = _mm512_shuffle_f32x4(f, f, Q % 2 == 0 ? 0x50 : 0xfa);
  sums[Q][r] = int4_scaled(s.products + 128 * Q, r, _mm512_permute_ps(four, 0x55 * r), sums[Q][r]);
  order_tiles();
}

template <int kTurn, int... S>
inline void int4_slots(const Int4Step& s, vf (&sums)[4][4], std::integer_sequence<int, S...>) {
  (int4_slot<kTurn, S>(s, sums), ...);
}

template <int kTurn>
inline void int4_step(const Int4Step& s, vf (&sums)[4][4]) {
  int4_slots<kTurn>(s, sums, std::make_integer_sequence<int, 16>{});
}

// out[t]: lane t of 16 rows; v[i] holds 8 lanes each of rows i | i + 4 for i < 4 and of i + 4 | i + 8 for the others.
inline void transpose_sums(const vf* v, vf (&out)[kPlaneRows]) {
  vf a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
    a[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = _mm512_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
      b[i + 2 * j + 1] = _mm512_shuffle_ps(a[i + j], a[i + j + 2], 0xee);
    }
  for (int i = 0; i < 4; ++i) {
    out[i] = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88);
    out[i + 4] = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xdd);
  }
}

template <class T>
struct Int4Tiles {
  const uint8_t *w, *tail;  // [n, k / 2]; the last panel, zero-padded, where it is not whole
  const bf16* scale;        // [k / 128, n]
  const T* bias;
  T* out;
  const float* steps;       // [num_rows]
  int64_t n, num_rows, groups, begin, end;

  const uint8_t* panel(int64_t row) const { return end - row >= kInt4Lanes ? w + row * groups * kInt4Bytes : tail; }

  void load_factors(int64_t group, int64_t row, vf (&factors)[2]) const {
    const bf16* p = scale + group * n + row;
    prefetch(p + kInt4Lanes);  // of the next panel: a group's scales are far from the last one's
    factors[0] = load_upto(p, min64(kTileRows, end - row));
    factors[1] = load_upto(p + kTileRows, max64(0, min64(kTileRows, end - row - kTileRows)));
  }

  // Results of a panel from `row` on for 8 rows of x from `first` on; clears the sums.
  void finish(int64_t row, int64_t first, vf (&sums)[4][4]) const {
    for (int64_t b = 0; b < 2 && row < end; ++b, row += kTileRows) {
      const int64_t rows = min64(kTileRows, end - row);
      const vf shift = bias ? load_upto(bias + row, rows) : set1(0.0f);
      vf columns[kPlaneRows];
      transpose_sums(sums[2 * b], columns);
      for (int64_t t = 0; t < min64(kPlaneRows, num_rows - first); ++t) {
        const vf y = add(mul(columns[t], set1(steps[first + t] * kInt4Unit)), shift);
        store_upto(out + (first + t) * n + row, y, rows);
      }
    }
    for (auto& quarter : sums)
      for (vf& sum : quarter) sum = set1(0.0f);
  }
};

// Where a stage is: a group of columns, 8 rows of x, a panel of W.
struct Int4Place {
  int64_t group, first, row;
  // To the next; true where the panel's sums for these rows of x are complete.
  bool advance(int64_t groups, int64_t num_rows) {
    if (++group < groups) return false;
    group = 0;
    if ((first += kPlaneRows) >= num_rows) {
      first = 0;
      row += kInt4Lanes;
    }
    return true;
  }
};

// The first unit, which no step fetches.
inline void read_first(Int4Ahead& ahead, Int4Step& s) {
  __m512i sink = _mm512_setzero_si512();
  do {
    ahead.advance(s);
    for (int64_t i = 0; i < kInt4Lanes && s.apart; ++i) {
      const uint8_t* line = s.ahead + i % kInt4Streams * s.apart + i / kInt4Streams * kTileBytes;
      sink = _mm512_or_si512(sink, _mm512_loadu_si512(line));
    }
  } while (ahead.at < ahead.apart);
  asm volatile("" : : "v"(sink));  // or the compiler sees that nobody needs it
}

// planes: [rows of x / 8][groups][2][1024]. buffers: 2 * (kInt4Unpacked + kInt4Apart) + 4096 bytes.
template <class T>
inline void int4_panels(const Int4Tiles<T>& p, const int8_t* planes, char* buffers) {
  const int64_t x_groups = (p.num_rows + kPlaneRows - 1) / kPlaneRows * p.groups;
  const int64_t steps = (p.end - p.begin + kInt4Lanes - 1) / kInt4Lanes * x_groups, row_bytes = p.groups * kInt4Bytes;
  auto* unpacked = reinterpret_cast<uint8_t*>(buffers);
  auto* products = reinterpret_cast<int32_t*>(buffers + 2 * (kInt4Unpacked + kInt4Apart));
  Int4Place unpack{0, 0, p.begin}, scale{0, 0, p.begin};
  Int4Step s{};
  s.stride = row_bytes;
  const int64_t panel = kInt4Lanes * row_bytes, panels = (kInt4Streams * kInt4Piece + panel - 1) / panel;
  Int4Ahead ahead{p.w + p.begin * row_bytes, p.w + p.end * row_bytes, panels * panel};
  read_first(ahead, s);
  vf sums[4][4];
  std::memset(products, 0, 4096);
  p.finish(p.end, 0, sums);
  for (int64_t i = -1, multiplied = 0; i < steps + 2; ++i) {
    const int64_t turn = i & 1;
    if (i + 1 < steps) {
      s.w = p.panel(unpack.row) + unpack.group * kInt4Bytes;
      if (unpack.first == 0) ahead.advance(s);
      unpack.advance(p.groups, p.num_rows);
    }
    s.unpacked = unpacked + (1 - turn) * (kInt4Unpacked + kInt4Apart);
    s.tiles = unpacked + turn * (kInt4Unpacked + kInt4Apart);
    s.x = planes + multiplied * kInt4Group * 16;
    if (i >= 0 && ++multiplied == x_groups) multiplied = 0;
    s.stored = products + (1 - turn) * 512;
    s.products = products + turn * 512;
    if (i >= 2) p.load_factors(scale.group, scale.row, s.factors);
    turn ? int4_step<1>(s, sums) : int4_step<0>(s, sums);
    const int64_t row = scale.row, first = scale.first;
    if (i >= 2 && scale.advance(p.groups, p.num_rows)) p.finish(row, first, sums);
  }
}

template <class T>
inline void tile_linear_int4(const T* x, int64_t x_stride, int64_t num_rows, const uint8_t* w, const bf16* scale,
                             const T* bias, T* out, int64_t n, int64_t k, RowUnits units) {
  Range range;
  if (!units.take(range)) return;
  const int64_t x_groups = (num_rows + kPlaneRows - 1) / kPlaneRows, tail_bytes = kInt4Lanes * k / 2;
  constexpr int64_t kBuffers = 2 * (kInt4Unpacked + kInt4Apart) + 4096;
  auto* planes = static_cast<int8_t*>(scratch(x_groups * k * 16 + tail_bytes + kBuffers));
  auto* tail = reinterpret_cast<uint8_t*>(planes + x_groups * k * 16);
  float steps[kMaxSkinnyRows];
  for (int64_t g = 0; g < x_groups; ++g)
    plane_tiles(x + g * kPlaneRows * x_stride, x_stride, min64(kPlaneRows, num_rows - g * kPlaneRows), k,
                planes + g * k * 16, steps + g * kPlaneRows);
  if (const int64_t rows = (range.end - range.begin) % kInt4Lanes; rows > 0) {
    std::memset(tail, 0, tail_bytes);
    std::memcpy(tail, w + (range.end - rows) * k / 2, rows * k / 2);
  }
  configure_tiles(16);
  const Int4Tiles<T> problem{w, tail, scale, bias, out, steps, n, num_rows, k / kInt4Group, range.begin,
                            range.end};
  int4_panels(problem, planes, reinterpret_cast<char*>(tail + tail_bytes));
  _tile_release();
}

}  // namespace antiphon::ANTIPHON_ISA
