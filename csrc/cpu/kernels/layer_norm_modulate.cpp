// y[r] = (x[r] - mean) / sqrt(var + eps) * (1 + scale[r / fpt]) + shift[r / fpt]; mean, then variance, in float32. And
// the plain layer norm, one weight in place of 1 + scale and one bias in place of shift for all rows.
#include "kernels.h"
#include "simd.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

// Sum of f of every element, of the last few one by one. Four sums side by side, for each waits for its last addition.
template <class T, class F, class G>
float sum_of(const T* x, int64_t n, const F& f, const G& one) {
  vf sums[4] = {set1(0.0f), set1(0.0f), set1(0.0f), set1(0.0f)};
  int64_t i = 0;
  for (; i + 4 * VF <= n; i += 4 * VF)
    for (int64_t j = 0; j < 4; ++j) sums[j] = add(sums[j], f(load(x + i + j * VF)));
  for (; i + VF <= n; i += VF) sums[0] = add(sums[0], f(load(x + i)));
  float sum = hsum(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
  for (; i < n; ++i) sum += one(widen(x[i]));
  return sum;
}

template <class T, class Gain>
void row(const T* x, const T* shift, const T* scale, T* out, int64_t hidden, float eps, const Gain& gain) {
  const float count = static_cast<float>(hidden);
  const float average = sum_of(x, hidden, [](vf v) { return v; }, [](float v) { return v; }) / count;
  const vf mean = set1(average);
  const float squares = sum_of(
      x, hidden, [&](vf v) { return mul(sub(v, mean), sub(v, mean)); },
      [&](float v) { return (v - average) * (v - average); });
  const vf factor = set1(1.0f / std::sqrt(squares / count + eps));
  for_vectors(hidden, [&](int64_t i, int64_t n) {
    const vf normed = mul(sub(load_upto(x + i, n), mean), factor);
    store_upto(out + i, fmadd(normed, gain(load_upto(scale + i, n)), load_upto(shift + i, n)), n);
  });
}

template <class T>
void modulate(const LayerNormModulateArgs& a, int index, int count) {
  const Range range = partition(a.num_rows, 1, index, count);
  for (int64_t r = range.begin; r < range.end; ++r) {
    const int64_t token = r / a.frames_per_token;
    row(static_cast<const T*>(a.x) + r * a.hidden, static_cast<const T*>(a.shift) + token * a.shift_stride,
        static_cast<const T*>(a.scale) + token * a.scale_stride, static_cast<T*>(a.out) + r * a.hidden, a.hidden,
        a.eps, [](vf scale) { return add(set1(1.0f), scale); });
  }
}

template <class T>
void norm(const LayerNormArgs& a, int index, int count) {
  const Range range = partition(a.num_rows, 1, index, count);
  for (int64_t r = range.begin; r < range.end; ++r)
    row(static_cast<const T*>(a.x) + r * a.hidden, static_cast<const T*>(a.bias), static_cast<const T*>(a.weight),
        static_cast<T*>(a.out) + r * a.hidden, a.hidden, a.eps, [](vf weight) { return weight; });
}

}  // namespace

void layer_norm_modulate(const LayerNormModulateArgs& a, int index, int count) {
  a.dtype == DType::f32 ? modulate<float>(a, index, count) : modulate<bf16>(a, index, count);
}

void layer_norm(const LayerNormArgs& a, int index, int count) {
  a.dtype == DType::f32 ? norm<float>(a, index, count) : norm<bf16>(a, index, count);
}

}  // namespace antiphon::ANTIPHON_ISA
