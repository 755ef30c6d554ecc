// The tile instructions of AMX in vectors, for testing what is written for them on a CPU that has none; included by simd.h
// where the build asks for it (ANTIPHON_EMULATE_TILES).
//
// Results are those that Intel's manual gives for TDPBF16PS and TDPBSSD, in its order of operations. What would be a fault
// there, tiles that are not configured or do not fit each other, ends the process. Memory is read and written as the
// instructions do, so a sanitizer sees every byte of it.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace antiphon::emulated {

struct Tile {
  int rows = 0, bytes = 0;  // of a row; none until it is configured
  alignas(64) uint8_t data[16][64] = {};
};

inline thread_local Tile tiles[8];

inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "emulated tiles: %s\n", what);
  std::abort();
}

inline Tile& configured(int tile) {
  require(tiles[tile].rows > 0, "a tile is used that is not configured");
  return tiles[tile];
}

// As the 64 bytes at `config` say: palette, bytes of a row of each tile from byte 16 on, rows from byte 48 on.
inline void load_config(const void* config) {
  uint8_t bytes[64];
  std::memcpy(bytes, config, 64);
  require(bytes[0] == 1 && bytes[1] == 0, "palette 1, from row 0 on");
  for (int t = 0; t < 8; ++t) {
    const int row_bytes = bytes[16 + 2 * t] + 256 * bytes[17 + 2 * t], rows = bytes[48 + t];
    require(rows <= 16 && row_bytes <= 64 && (rows == 0) == (row_bytes == 0), "up to 16 rows of up to 64 bytes");
    tiles[t] = {};
    tiles[t].rows = rows;
    tiles[t].bytes = row_bytes;
  }
}

inline void release() {
  for (Tile& tile : tiles) tile = {};
}

inline void zero(int tile) { std::memset(configured(tile).data, 0, sizeof(tiles[tile].data)); }

inline void load(int tile, const void* base, int64_t stride) {
  zero(tile);
  for (int r = 0; r < tiles[tile].rows; ++r)
    std::memcpy(tiles[tile].data[r], static_cast<const char*>(base) + r * stride, tiles[tile].bytes);
}

inline void store(int tile, void* base, int64_t stride) {
  const Tile& from = configured(tile);
  for (int r = 0; r < from.rows; ++r) std::memcpy(static_cast<char*>(base) + r * stride, from.data[r], from.bytes);
}

// Of a product: sums [m][n], a [m][k], b [k][n], words of four bytes.
inline void require_fit(const Tile& sums, const Tile& a, const Tile& b) {
  require(sums.rows == a.rows && sums.bytes == b.bytes && a.bytes == 4 * b.rows, "sizes of a product do not fit");
}

inline int32_t word(const Tile& tile, int row, int column) {
  int32_t out;
  std::memcpy(&out, tile.data[row] + 4 * column, 4);
  return out;
}

// sums += a b in pairs of bfloat16: of every sum the even products and the odd ones one after the other, then both added.
// Denormals are zero, as operands and as results.
inline void multiply_halves(int to, int of_a, int of_b) {
  Tile& sums = configured(to);
  const Tile &a = configured(of_a), &b = configured(of_b);
  require_fit(sums, a, b);
  constexpr unsigned kDefault = 0x1f80, kDenormalsAreZero = 0x8040;  // exceptions masked, to nearest
  const unsigned before = _mm_getcsr();
  _mm_setcsr(kDefault | kDenormalsAreZero);
  const auto even = [](__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); };
  const auto odd = [](__m512i pairs) { return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536))); };
  for (int m = 0; m < sums.rows; ++m) {
    __m512 evens = _mm512_setzero_ps(), odds = evens;
    for (int k = 0; k < b.rows; ++k) {
      const __m512i left = _mm512_set1_epi32(word(a, m, k)), right = _mm512_load_si512(b.data[k]);
      evens = _mm512_fmadd_ps(even(left), even(right), evens);
      odds = _mm512_fmadd_ps(odd(left), odd(right), odds);
    }
    const __m512 sum = _mm512_add_ps(_mm512_load_ps(sums.data[m]), _mm512_add_ps(evens, odds));
    _mm512_store_ps(sums.data[m], _mm512_maskz_mov_ps((1u << sums.bytes / 4) - 1u, sum));
  }
  asm volatile("" ::: "memory");  // all of it between the two settings
  _mm_setcsr(before);
}

// sums += a b in fours of signed bytes.
inline void multiply_bytes(int to, int of_a, int of_b) {
  Tile& sums = configured(to);
  const Tile &a = configured(of_a), &b = configured(of_b);
  require_fit(sums, a, b);
  for (int m = 0; m < sums.rows; ++m) {
    __m512i sum = _mm512_load_si512(sums.data[m]);
    for (int k = 0; k < b.rows; ++k)
      for (int i = 0; i < 4; ++i) {
        const __m512i right = _mm512_srai_epi32(_mm512_slli_epi32(_mm512_load_si512(b.data[k]), 24 - 8 * i), 24);
        const __m512i left = _mm512_set1_epi32(static_cast<int8_t>(word(a, m, k) >> (8 * i)));
        sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(left, right));
      }
    _mm512_store_si512(sums.data[m], sum);
  }
}

}  // namespace antiphon::emulated

#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#define _tile_loadconfig(config) antiphon::emulated::load_config(config)
#define _tile_release() antiphon::emulated::release()
#define _tile_zero(tile) antiphon::emulated::zero(tile)
#define _tile_loadd(tile, base, stride) antiphon::emulated::load(tile, base, stride)
#define _tile_stream_loadd(tile, base, stride) antiphon::emulated::load(tile, base, stride)
#define _tile_stored(tile, base, stride) antiphon::emulated::store(tile, base, stride)
#define _tile_dpbf16ps(sums, a, b) antiphon::emulated::multiply_halves(sums, a, b)
#define _tile_dpbssd(sums, a, b) antiphon::emulated::multiply_bytes(sums, a, b)
