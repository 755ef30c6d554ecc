// conv1d on AMX tiles; included by conv1d.cpp where the instruction set has them.
//
// Two blocks of 16 times meet two blocks of 16 output channels: four sums in tiles.
#pragma once

#include "tiles.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int64_t kTile = 1024;  // bytes

// The four sums of 32 times; x and w point at the first step's rows, `at` holds the steps' byte offsets.
template <bool kSplit>
inline void tile_products(const char* x, const char* w, const int64_t* at, int64_t steps, int64_t plane) {
  for (int64_t s = 0; s < steps; ++s) {
    const char* a = x + at[s];
    if constexpr (kSplit) {
      _tile_loadd(4, a, 64);
      _tile_loadd(6, w + 2 * kTile, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, w + 3 * kTile, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, a + kTile, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      _tile_loadd(6, w, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(2, 5, 6);
      _tile_loadd(7, w + kTile, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
      _tile_loadd(4, a + plane, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, a + plane + kTile, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      w += 4 * kTile;
    } else {
      _tile_loadd(4, a, 64);
      _tile_loadd(6, w, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, w + kTile, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, a + kTile, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      w += 2 * kTile;
    }
  }
}

template <bool kSplit>
inline void tile_chunk(const ConvChunk& c) {
  int64_t at[kConvMaxSteps];
  c.step_offsets(at);
  const char* w = c.weights + c.begin * 2 * kTile * (kSplit ? 2 : 1);
  const int64_t tiles = (c.times + kConvTimes - 1) / kConvTimes, share = (kConvWeightBytes / 64 + tiles - 1) / tiles;
  for (int64_t i = 0; i < tiles; ++i) {
    float* sums = c.sums + i * kConvTimes * 16;
    if (c.ahead)
      for (int64_t line = i * share; line < min64((i + 1) * share, kConvWeightBytes / 64); ++line)
        _mm_prefetch(c.ahead + line * 64, _MM_HINT_T1);
    c.begin == 0 ? zero_sums<2>() : load_sums<2>(sums, kConvSums, 256);
    tile_products<kSplit>(c.input + i * kConvTimes * 64, w, at, c.end - c.begin, c.plane_bytes);
    store_sums<2>(sums, kConvSums, 256);
  }
}

}  // namespace antiphon::ANTIPHON_ISA
