// conv1d on AMX tiles; included by conv1d.cpp where the instruction set has them.
//
// Two blocks of 16 output channels meet two blocks of 16 times: four sums in tiles. A step is one tap and 32 input
// channels; its times are a shifted view of the packed input (conv1d_pack.cpp), so no patch is ever copied. Weights of
// the 32 channels at hand are packed once a unit: [block][plane][input channels / 32][tap][16][32]. Taps are the inner
// loop: they read the same cache lines of the input.
#pragma once

#include "tiles.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int64_t kConvChannels = 2 * kTileRows, kConvTimes = 32, kConvK = 32;

struct ConvWeights {
  bf16* memory;
  int64_t steps, plane, block;  // taps * channel blocks; elements of a plane and of a block
};

// p[0], p[stride], ..., n of them, then zeros.
inline vf load_strided(const float* p, int64_t stride, int64_t n) {
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i at = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(static_cast<int32_t>(stride)));
  return _mm512_mask_i32gather_ps(set1(0.0f), first(n), at, p, 4);
}
inline vf load_strided(const bf16* p, int64_t stride, int64_t n) {
  bf16 values[VF] = {};
  for (int64_t i = 0; i < n; ++i) values[i] = p[i * stride];
  return load(values);
}

template <class T>
inline void pack_conv_weights(const Conv1dArgs& a, int64_t co, const ConvWeights& w) {
  const int64_t channel_blocks = a.padded_channels / kConvK;
  for (int64_t r = 0; r < kConvChannels; ++r) {
    const bool exists = co + r < a.out_channels;
    const T* row = static_cast<const T*>(a.weight) + (exists ? co + r : 0) * a.in_channels * a.taps;
    bf16* out = w.memory + r / kTileRows * w.block + r % kTileRows * kConvK;
    for (int64_t j = 0; j < a.taps; ++j)
      for (int64_t c = 0; c < channel_blocks; ++c) {
        const int64_t held = exists ? min64(kConvK, a.in_channels - c * kConvK) : 0;
        bf16* high = out + (c * a.taps + j) * kTileRows * kConvK;
        for (int64_t i = 0; i < kConvK; i += VF) {
          const vf v = load_strided(row + (c * kConvK + i) * a.taps + j, a.taps, max64(0, min64(VF, held - i)));
          store(high + i, v);
          if (a.num_planes == 2) store(high + w.plane + i, sub(v, load(high + i)));
        }
      }
  }
}

// The next 32 input channels: `reach` bytes of 16 rows a plane.
template <bool kSplit>
inline void prefetch_channels(const bf16* rows, int64_t stride, int64_t plane, int64_t reach) {
  for (int64_t r = 0; r < kTileRows; ++r) {
    const char* row = reinterpret_cast<const char*>(rows) + r * stride;
    for (int64_t i = 0; i < reach; i += 64) {
      prefetch(row + i);
      if constexpr (kSplit) prefetch(row + plane * 2 + i);
    }
  }
}

// sums[co block][time block][16][16] of 32 channels and 32 times from `x` on (the packed input, first tap).
template <bool kSplit>
inline void conv_products(const Conv1dArgs& a, const ConvWeights& w, const bf16* x, float (*sums)[2][256]) {
  const int64_t row = a.padded_length * 4, plane = a.padded_channels * a.padded_length;
  const int64_t reach = 4 * (kConvTimes + 2 * a.padding);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < w.steps; ++step) {
    const int64_t c = step / a.taps, j = step % a.taps;
    const bf16* rows = x + c * kConvK * a.padded_length;
    if (j == 0 && step + a.taps < w.steps) prefetch_channels<kSplit>(rows + kConvK * a.padded_length, row, plane, reach);
    const bf16* b = rows + 2 * j * a.dilation;
    const bf16* weights = w.memory + step * kTileRows * kConvK;
    _tile_loadd(4, weights, 64);
    _tile_loadd(6, b, row);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, weights + w.block, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_loadd(7, b + 32, row);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
    if constexpr (kSplit) {
      _tile_loadd(4, weights + w.plane, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, weights + w.block + w.plane, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      _tile_loadd(6, b + plane, row);
      _tile_loadd(4, weights, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, weights + w.block, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_loadd(7, b + plane + 32, row);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums[0][0], 64);
  _tile_stored(1, sums[0][1], 64);
  _tile_stored(2, sums[1][0], 64);
  _tile_stored(3, sums[1][1], 64);
}

template <class T>
inline void store_conv(const Conv1dArgs& a, int64_t batch, int64_t co, int64_t t, const float (*sums)[2][256]) {
  for (int64_t r = 0; r < min64(kConvChannels, a.out_channels - co); ++r) {
    const vf bias = set1(a.bias ? widen(static_cast<const T*>(a.bias)[co + r]) : 0.0f);
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t n = min64(16, a.length - t - 16 * half);
      if (n <= 0) continue;
      const int64_t at = (batch * a.out_channels + co + r) * a.length + t + 16 * half;
      vf y = add(load(sums[r / kTileRows][half] + r % kTileRows * 16), bias);
      if (a.residual) y = add(through<T>(y), load_upto(static_cast<const T*>(a.residual) + at, n));
      store_upto(static_cast<T*>(a.out) + at, y, n);
    }
  }
}

// A unit is 32 output channels over one of `spans` stretches of time of one item.
template <class T>
inline void conv_tiles(const Conv1dArgs& a, int index, int count) {
  const int64_t blocks = (a.out_channels + kConvChannels - 1) / kConvChannels;
  const int64_t times = (a.length + kConvTimes - 1) / kConvTimes, spans = min64(times, (count + blocks - 1) / blocks);
  const int64_t steps = a.taps * (a.padded_channels / kConvK), plane = steps * kTileRows * kConvK;
  const ConvWeights w{static_cast<bf16*>(scratch(2 * a.num_planes * plane * 2)), steps, plane, a.num_planes * plane};
  const Range range = partition(a.batch * blocks * spans, 1, index, count);
  alignas(64) float sums[2][2][256];
  int64_t packed = -1;
  configure_tiles(16);
  for (int64_t unit = range.begin; unit < range.end; ++unit) {
    const int64_t block = unit / spans % blocks, batch = unit / spans / blocks, span = unit % spans;
    if (packed != block) pack_conv_weights<T>(a, block * kConvChannels, w);
    packed = block;
    const bf16* x = a.planes + batch * a.num_planes * a.padded_channels * a.padded_length;
    for (int64_t i = times * span / spans; i < times * (span + 1) / spans; ++i) {
      const int64_t t = i * kConvTimes;
      a.num_planes == 2 ? conv_products<true>(a, w, x + 2 * t, sums) : conv_products<false>(a, w, x + 2 * t, sums);
      store_conv<T>(a, batch, block * kConvChannels, t, sums);
    }
  }
  _tile_release();
}

}  // namespace antiphon::ANTIPHON_ISA
