// Weights of convolutions over pairs of bfloat16 inputs, for vectors and tiles; included by conv1d.cpp.
#pragma once

namespace antiphon::ANTIPHON_ISA {

// [out channels / 32][step][plane][2][input channels / 2: 16][16 out channels][2]; float32 as two planes, the rounded
// values and what rounding left.
template <class T>
inline void pack_pairs(const ConvWeightArgs& a, int index, int count) {
  const int64_t in_blocks = (a.in_channels + 31) / 32, steps = in_blocks * a.num_taps, step = a.planes * kPairElements;
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
        if (a.planes == 2) to[kPairElements] = round_bf16(v - widen(to[0]));
      }
  }
}

}  // namespace antiphon::ANTIPHON_ISA
