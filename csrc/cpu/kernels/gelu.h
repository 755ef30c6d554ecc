// GELU of a vector in float32: x Phi(x), or with tanh x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3).
#pragma once

#include "simd.h"

namespace antiphon::ANTIPHON_ISA {

inline vf gelu_tanh(vf x) {
  const vf cube = mul(mul(x, x), x);
  const vf u = mul(set1(-1.5957691216f), fmadd(set1(0.044715f), cube, x));
  return mul(x, inverse(add(set1(1.0f), exp(u))));
}

// Phi(x) = 1 - e^(-x^2 / 2) t p(t) / 2 for x >= 0, t = 1 / (1 + a x / sqrt(2)); and 1 - Phi(-x) below. Abramowitz and
// Stegun 7.1.26, to 1e-7.
inline vf gelu_exact(vf x) {
  const vf negative = sub(set1(0.0f), x), size = max(x, negative);
  const vf t = inverse(fmadd(set1(0.3275911f * 0.70710678f), size, set1(1.0f)));
  vf p = set1(0.5f * 1.061405429f);
  p = fmadd(p, t, set1(0.5f * -1.453152027f));
  p = fmadd(p, t, set1(0.5f * 1.421413741f));
  p = fmadd(p, t, set1(0.5f * -0.284496736f));
  p = fmadd(p, t, set1(0.5f * 0.254829592f));
  const vf tail = mul(mul(p, t), exp(mul(set1(-0.5f), mul(x, x))));  // 1 - Phi(|x|)
  return sub(max(x, set1(0.0f)), mul(size, tail));                   // x - x tail or -|x| tail
}

}  // namespace antiphon::ANTIPHON_ISA
