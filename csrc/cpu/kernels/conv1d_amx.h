// conv1d on AMX tiles; included by conv1d.cpp where the instruction set has them.
//
// Two blocks of 16 times meet two blocks of 16 output channels: four sums in tiles. Packed weights:
// [out channels / 32][step][plane][2][input channels / 2: 16][16 out channels][2], a step 2 KiB a plane.
#pragma once

#include "tiles.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int64_t kTile = 1024;

template <class T>
inline void pack_tiles(const ConvWeightArgs& a, int index, int count) {
  const int64_t in_blocks = (a.in_channels + 31) / 32, steps = in_blocks * a.num_taps, step = a.planes * kTile;
  const Range range = partition((a.out_channels + 31) / 32 * steps, 1, index, count);
  for (int64_t unit = range.begin; unit < range.end; ++unit) {
    const int64_t co = unit / steps * 32, ci = unit % steps / a.num_taps * 32;
    const T* w = static_cast<const T*>(a.weight) + a.taps[unit % a.num_taps] * a.tap_stride;
    bf16* high = static_cast<bf16*>(a.packed) + unit * step;
    for (int64_t i = 0; i < step; ++i) high[i] = {0};
    for (int64_t o = 0; o < min64(32, a.out_channels - co); ++o)
      for (int64_t i = 0; i < min64(32, a.in_channels - ci); ++i) {
        const float v = widen(w[(co + o) * a.out_stride + (ci + i) * a.in_stride]);
        bf16* to = high + o / 16 * 512 + i / 2 * 32 + o % 16 * 2 + i % 2;
        to[0] = round_bf16(v);
        if (a.planes == 2) to[kTile] = round_bf16(v - widen(to[0]));
      }
  }
}

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
  constexpr int64_t kMaxSteps = kConvWeightBytes / (2 * kTile);
  int64_t at[kMaxSteps];
  for (int64_t s = c.begin; s < c.end; ++s)
    at[s - c.begin] = s / c.num_taps * c.block_bytes + c.offsets[s % c.num_taps] * 64;
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
