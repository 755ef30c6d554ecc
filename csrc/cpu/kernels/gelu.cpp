// GELU of every element in float32, one rounding: x Phi(x), or with tanh x / (1 + e^-2u), u = sqrt(2 / pi) (x +
// 0.044715 x^3). Threads own ranges of elements.
#include "kernels.h"
#include "simd.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

vf gelu_tanh(vf x) {
  const vf cube = mul(mul(x, x), x);
  const vf u = mul(set1(-1.5957691216f), fmadd(set1(0.044715f), cube, x));
  return div(x, add(set1(1.0f), exp(u)));
}

// Phi(x) = 1 - e^(-x^2 / 2) t p(t) / 2 for x >= 0, t = 1 / (1 + a x / sqrt(2)); and 1 - Phi(-x) below. Abramowitz and
// Stegun 7.1.26, to 1e-7.
vf gelu_exact(vf x) {
  const vf negative = sub(set1(0.0f), x), size = max(x, negative);
  const vf t = div(set1(1.0f), fmadd(set1(0.3275911f * 0.70710678f), size, set1(1.0f)));
  vf p = set1(0.5f * 1.061405429f);
  p = fmadd(p, t, set1(0.5f * -1.453152027f));
  p = fmadd(p, t, set1(0.5f * 1.421413741f));
  p = fmadd(p, t, set1(0.5f * -0.284496736f));
  p = fmadd(p, t, set1(0.5f * 0.254829592f));
  const vf tail = mul(mul(p, t), exp(mul(set1(-0.5f), mul(x, x))));  // 1 - Phi(|x|)
  return sub(max(x, set1(0.0f)), mul(size, tail));                   // x - x tail or -|x| tail
}

template <class T, class F>
void apply(const GeluArgs& a, int index, int count, const F& f) {
  const Range range = partition(a.size, 512, index, count);
  const T* x = static_cast<const T*>(a.x) + range.begin;
  T* out = static_cast<T*>(a.out) + range.begin;
  for_vectors(range.end - range.begin, [&](int64_t i, int64_t n) { store_upto(out + i, f(load_upto(x + i, n)), n); });
}

template <class T>
void run(const GeluArgs& a, int index, int count) {
  a.tanh ? apply<T>(a, index, count, gelu_tanh) : apply<T>(a, index, count, gelu_exact);
}

}  // namespace

void gelu(const GeluArgs& a, int index, int count) {
  a.dtype == DType::f32 ? run<float>(a, index, count) : run<bf16>(a, index, count);
}

}  // namespace antiphon::ANTIPHON_ISA
