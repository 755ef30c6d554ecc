// conv1d in vectors of float32 sums; included by conv1d.cpp. Without tiles for all convolutions, with them for those in
// float32 that have few channels.
//
// kTimes inputs, broadcast, meet kVectors vectors of output channels. Packed weights, in the weights' dtype, of single
// inputs: [out channels / 32][step][16 input channels][32 out channels]; of pairs as conv1d_pairs.h says.
#pragma once

#include "conv1d_chunk.h"

namespace antiphon::ANTIPHON_ISA {

template <class T>
inline void pack_singles(const ConvWeightArgs& a, int index, int count) {
  const int64_t in_blocks = (a.in_channels + 15) / 16, steps = in_blocks * a.num_taps, step = 16 * kConvChannels;
  const Range range = partition((a.out_channels + 31) / 32 * steps, 1, index, count);
  for (int64_t unit = range.begin; unit < range.end; ++unit) {
    const int64_t co = unit / steps * 32, ci = unit % steps / a.num_taps * 16;
    const T* w = static_cast<const T*>(a.weight) + a.taps[unit % a.num_taps] * a.tap_stride;
    T* to = static_cast<T*>(a.packed) + unit * step;
    std::memset(static_cast<void*>(to), 0, step * sizeof(T));
    for (int64_t i = 0; i < min64(16, a.in_channels - ci); ++i)
      for (int64_t o = 0; o < min64(32, a.out_channels - co); ++o)
        to[i * kConvChannels + o] = w[(co + o) * a.out_stride + (ci + i) * a.in_stride];
  }
}

// A step's inputs are 16 numbers.
template <class T>
struct Singles {
  using Weight = T;
  using Vec = vf;
  static constexpr int64_t kElements = 16 * kConvChannels;
  static Vec weights(const T* w, int64_t i, int64_t lane) { return load(w + i * kConvChannels + lane); }
  static Vec input(const char* row, int64_t i) { return set1(reinterpret_cast<const float*>(row)[i]); }
  static vf step(vf sum, Vec w, Vec x) { return fmadd(x, w, sum); }
};

#if defined(__AVX512BF16__)
// Or 16 pairs of them.
struct Pairs {
  using Weight = bf16;
  using Vec = Dot<bf16>::vec;
  static constexpr int64_t kElements = kPairElements;
  static Vec weights(const bf16* w, int64_t i, int64_t lane) { return Dot<bf16>::load(w + lane / 16 * 512 + i * 32); }
  static Vec input(const char* row, int64_t i) { return Dot<bf16>::splat(reinterpret_cast<const bf16*>(row) + 2 * i); }
  static vf step(vf sum, Vec w, Vec x) { return Dot<bf16>::step(sum, w, x); }
};
#endif

// kTimes times from t on and kVectors vectors of channels from `lane` on; `at` holds the steps' byte offsets. A chunk has a
// sum of its own, which is added to those before it: shorter sums round less.
template <int64_t kVectors, int64_t kTimes, class Step>
inline void vector_products(const ConvChunk& c, const int64_t* at, const typename Step::Weight* w, int64_t t,
                            int64_t lane) {
  const char* x = c.input + t * 64;
  float* sums[kVectors];
  for (int64_t v = 0; v < kVectors; ++v) sums[v] = c.sums + t * 16 + (lane + v * VF) / 16 * c.half + (lane + v * VF) % 16;
  vf sum[kTimes][kVectors];
  for (int64_t i = 0; i < kTimes; ++i)
    for (int64_t v = 0; v < kVectors; ++v) sum[i][v] = set1(0.0f);
  const auto word = [&](int64_t s, int64_t i) {
    typename Step::Vec held[kVectors];
    for (int64_t v = 0; v < kVectors; ++v) held[v] = Step::weights(w + s * Step::kElements, i, lane + v * VF);
    for (int64_t r = 0; r < kTimes; ++r) {
      const typename Step::Vec value = Step::input(x + at[s] + r * 64, i);
      for (int64_t v = 0; v < kVectors; ++v) sum[r][v] = Step::step(sum[r][v], held[v], value);
    }
  };
  const int64_t steps = c.end - c.begin;
  const int64_t whole = c.last_words == 16 ? steps : min64(max64(c.last_block - c.begin, 0), steps);
  for (int64_t s = 0; s < whole; ++s)
    for (int64_t i = 0; i < 16; ++i) word(s, i);
  for (int64_t s = whole; s < steps; ++s)
    for (int64_t i = 0; i < c.last_words; ++i) word(s, i);
  for (int64_t i = 0; i < kTimes; ++i)
    for (int64_t v = 0; v < kVectors; ++v)
      store(sums[v] + i * 16, c.begin == 0 ? sum[i][v] : add(load(sums[v] + i * 16), sum[i][v]));
}

template <int64_t kVectors, int64_t kTimes, class Step>
inline void vector_passes(const ConvChunk& c, const int64_t* at) {
  const auto* w = reinterpret_cast<const typename Step::Weight*>(c.weights) + c.begin * Step::kElements;
  for (int64_t t = 0; t < c.times; t += kTimes)
    for (int64_t lane = 0; lane < c.channels; lane += kVectors * VF)
      c.times - t > kTimes / 2 ? vector_products<kVectors, kTimes, Step>(c, at, w, t, lane)
                               : vector_products<kVectors, kTimes / 2, Step>(c, at, w, t, lane);
}

// As many sums as there are registers for.
template <class Step>
inline void vector_chunk(const ConvChunk& c) {
  int64_t at[kConvMaxSteps];
  c.step_offsets(at);
  if constexpr (VF == 16) {
    c.channels > 16 ? vector_passes<2, 12, Step>(c, at) : vector_passes<1, 24, Step>(c, at);
  } else if constexpr (VF == 8) {
    vector_passes<2, 6, Step>(c, at);
  } else {
    vector_passes<4, 4, Step>(c, at);
  }
}

}  // namespace antiphon::ANTIPHON_ISA
