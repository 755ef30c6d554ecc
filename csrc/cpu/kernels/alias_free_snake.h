// x + inv_beta sin(alpha x)^2 of one channel or, where lanes are channels, of VF of them.
//
// sin(y)^2 has period pi, so r = y / pi - nearest is found in fused steps from alpha / pi held in two parts (48 bits), and
// sin(pi r)^2 is a polynomial in r^2 with |error| < 2e-7. Exact reduction needs |y / pi| < kLargestTurns.
#pragma once

#include "simd.h"

namespace antiphon::ANTIPHON_ISA {

constexpr float kLargestTurns = 2e6f;
constexpr int kTaps = 12;
constexpr int64_t kHalo = 3;  // activated samples needed on either side of an output, and inputs on either side of those

// a * b + c rounded once, also where fmadd is not fused.
inline vf fused(vf a, vf b, vf c) {
  if constexpr (VF == 1) {
    float lanes[3];
    store(lanes, a), store(lanes + 1, b), store(lanes + 2, c);
    lanes[0] = std::fma(lanes[0], lanes[1], lanes[2]);
    return load(lanes);
  }
  return fmadd(a, b, c);
}

inline vf negate(vf a) { return sub(set1(0.0f), a); }

struct Snake {
  vf high, low, inv_beta;  // alpha / pi in two parts

  // From per-channel values; `channels` of them are read.
  static Snake of(const float* alpha, const float* inv_beta, int64_t channels) {
    float high[VF] = {}, low[VF] = {}, scale[VF] = {};
    for (int64_t i = 0; i < channels; ++i) {
      const double turns = alpha[i] / 3.14159265358979323846;
      high[i] = static_cast<float>(turns);
      low[i] = static_cast<float>(turns - high[i]);
      scale[i] = inv_beta[i];
    }
    return {load(high), load(low), load(scale)};
  }

  static Snake all(float alpha, float inv_beta) {
    float alphas[VF], scales[VF];
    for (int i = 0; i < VF; ++i) alphas[i] = alpha, scales[i] = inv_beta;
    return of(alphas, scales, VF);
  }

  vf operator()(vf x) const {
    const vf turns = nearest(mul(x, high));
    const vf r = fmadd(x, low, fused(x, high, negate(turns)));
    const vf z = mul(r, r);
    vf p = set1(-3.2729463577f);
    p = fmadd(p, z, set1(12.990730286f));
    p = fmadd(p, z, set1(-30.085952759f));
    p = fmadd(p, z, set1(42.725383759f));
    p = fmadd(p, z, set1(-32.469581604f));
    p = fmadd(p, z, set1(9.8696031570f));
    return fmadd(mul(inv_beta, z), p, x);
  }
};

// The same for one sample of any size.
inline float snake_of_any(float x, float alpha, float inv_beta) {
  const double s = std::sin(static_cast<double>(alpha) * x);
  return x + inv_beta * static_cast<float>(s * s);
}

// The largest |activated sample before activation| that inputs up to `largest` can lead to is this times `largest`.
inline float gain(const float* up) {
  float even = 0.0f, odd = 0.0f;
  for (int j = 0; j < kTaps; j += 2) even += std::fabs(up[j + 1]), odd += std::fabs(up[j]);
  return 2.0f * (even > odd ? even : odd);
}

// Filter taps as vectors: `scale` times every other tap from `start` on.
struct Phase {
  vf tap[6];
  Phase(const float* taps, int start, float scale) {
    for (int j = 0; j < 6; ++j) tap[j] = set1(scale * taps[start + 2 * j]);
  }
};

struct Filters {
  Phase up_even, up_odd, down_even, down_odd;
  Filters(const float* up, const float* down)
      : up_even(up, 1, 2.0f), up_odd(up, 0, 2.0f), down_even(down, 1, 1.0f), down_odd(down, 0, 1.0f) {}
};

}  // namespace antiphon::ANTIPHON_ISA
