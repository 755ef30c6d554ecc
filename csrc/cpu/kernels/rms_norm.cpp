// y = weight[branch] * round(x / sqrt(mean(x^2) + eps)), optionally after r = round(x + residual), which is then
// stored too. Threads own whole rows; the sum of squares is one vector of partial sums in the order of the columns.
#include "kernels.h"
#include "simd.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

template <class T>
void row(const T* x, const T* residual, const T* weight, T* out, T* sum_out, int64_t hidden, float eps) {
  vf squares = set1(0.0f);
  for_vectors(hidden, [&](int64_t i, int64_t n) {
    vf v = load_upto(x + i, n);
    if (residual) {
      v = through<T>(add(v, load_upto(residual + i, n)));
      store_upto(sum_out + i, v, n);
    }
    squares = fmadd(v, v, squares);
  });
  const T* input = residual ? sum_out : x;
  const vf scale = set1(1.0f / std::sqrt(hsum(squares) / static_cast<float>(hidden) + eps));
  for_vectors(hidden, [&](int64_t i, int64_t n) {
    const vf normed = through<T>(mul(load_upto(input + i, n), scale));
    store_upto(out + i, mul(normed, load_upto(weight + i, n)), n);
  });
}

template <class T>
void run(const RmsNormArgs& a, int index, int count) {
  const Range range = partition(a.num_rows, 1, index, count);
  for (int64_t t = range.begin; t < range.end; ++t) {
    const int64_t at = t * a.hidden;
    const T* weight = static_cast<const T*>(a.weight) + (t < a.split ? 0 : a.hidden);
    const T* residual = a.residual ? static_cast<const T*>(a.residual) + at : nullptr;
    T* sum_out = a.residual ? static_cast<T*>(a.sum_out) + at : nullptr;
    row(static_cast<const T*>(a.x) + at, residual, weight, static_cast<T*>(a.out) + at, sum_out, a.hidden, a.eps);
  }
}

}  // namespace

void rms_norm(const RmsNormArgs& a, int index, int count) {
  a.dtype == DType::f32 ? run<float>(a, index, count) : run<bf16>(a, index, count);
}

}  // namespace antiphon::ANTIPHON_ISA
