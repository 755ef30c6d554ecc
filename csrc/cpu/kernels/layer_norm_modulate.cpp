// y[r] = (x[r] - mean) / sqrt(var + eps) * (1 + scale[r / fpt]) + shift[r / fpt]; mean, then variance, in float32. And
// the plain layer norm, one weight in place of 1 + scale and one bias in place of shift for all rows.
#include "kernels.h"
#include "simd.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

template <class T, class Gain>
void row(const T* x, const T* shift, const T* scale, T* out, int64_t hidden, float eps, const Gain& gain) {
  const float count = static_cast<float>(hidden);
  vf sum = set1(0.0f), squares = set1(0.0f);
  for_vectors(hidden, [&](int64_t i, int64_t n) { sum = add(sum, load_upto(x + i, n)); });
  const vf mean = set1(hsum(sum) / count);
  const int64_t whole = hidden / VF * VF;
  for (int64_t i = 0; i < whole; i += VF) {
    const vf d = sub(load(x + i), mean);
    squares = fmadd(d, d, squares);
  }
  float tail = 0.0f;
  for (int64_t i = whole; i < hidden; ++i) {
    const float d = widen(x[i]) - hsum(sum) / count;
    tail += d * d;
  }
  const vf factor = set1(1.0f / std::sqrt((hsum(squares) + tail) / count + eps));
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
