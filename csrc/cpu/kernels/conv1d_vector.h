// conv1d in float32 vectors; included by conv1d.cpp. Without tiles for all convolutions, with them for those in float32
// that have few channels.
//
// kTimes inputs, broadcast, meet kVectors vectors of output channels. Packed weights, in the weights' dtype:
// [out channels / 32][step][16 input channels][32 out channels].
#pragma once

namespace antiphon::ANTIPHON_ISA {

template <class T>
inline void pack_vectors(const ConvWeightArgs& a, int index, int count) {
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

// Where channel `lane` of the unit has its sums.
inline int64_t sums_at(int64_t lane) { return lane / 16 * kConvSums + lane % 16; }

// kTimes times from t on and kVectors vectors of channels from `lane` on.
template <int64_t kVectors, int64_t kTimes, class T>
inline void vector_products(const ConvChunk& c, const T* w, int64_t t, int64_t lane) {
  const char* x = c.input + t * 64;
  float* sums[kVectors];
  for (int64_t v = 0; v < kVectors; ++v) sums[v] = c.sums + t * 16 + sums_at(lane + v * VF);
  vf sum[kTimes][kVectors];
  for (int64_t i = 0; i < kTimes; ++i)
    for (int64_t v = 0; v < kVectors; ++v) sum[i][v] = c.begin == 0 ? set1(0.0f) : load(sums[v] + i * 16);
  for (int64_t s = c.begin; s < c.end; ++s, w += 16 * kConvChannels) {
    const auto* rows = reinterpret_cast<const float*>(x + s / c.num_taps * c.block_bytes + c.offsets[s % c.num_taps] * 64);
    for (int64_t i = 0; i < 16; ++i) {
      vf held[kVectors];
      for (int64_t v = 0; v < kVectors; ++v) held[v] = load(w + i * kConvChannels + lane + v * VF);
      for (int64_t r = 0; r < kTimes; ++r) {
        const vf value = set1(rows[r * 16 + i]);
        for (int64_t v = 0; v < kVectors; ++v) sum[r][v] = fmadd(value, held[v], sum[r][v]);
      }
    }
  }
  for (int64_t i = 0; i < kTimes; ++i)
    for (int64_t v = 0; v < kVectors; ++v) store(sums[v] + i * 16, sum[i][v]);
}

template <int64_t kVectors, int64_t kTimes, class T>
inline void vector_passes(const ConvChunk& c) {
  const T* w = reinterpret_cast<const T*>(c.weights) + c.begin * 16 * kConvChannels;
  for (int64_t t = 0; t < c.times; t += kTimes)
    for (int64_t lane = 0; lane < c.channels; lane += kVectors * VF) vector_products<kVectors, kTimes>(c, w, t, lane);
}

// As many sums as there are registers for.
template <class T>
inline void vector_chunk(const ConvChunk& c) {
  if constexpr (VF == 16) {
    c.channels > 16 ? vector_passes<2, 12, T>(c) : vector_passes<1, 24, T>(c);
  } else if constexpr (VF == 8) {
    vector_passes<2, 6, T>(c);
  } else {
    vector_passes<4, 4, T>(c);
  }
}

}  // namespace antiphon::ANTIPHON_ISA
