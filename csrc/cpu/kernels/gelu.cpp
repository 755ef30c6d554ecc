// GELU of every element, one rounding. Threads own ranges of elements.
#include "activations.h"
#include "kernels.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

template <class T, class F>
void apply(const GeluArgs& a, int index, int count, const F& f) {
  const Range range = partition(a.size, 512, index, count);
  const T* x = static_cast<const T*>(a.x) + range.begin;
  T* out = static_cast<T*>(a.out) + range.begin;
  activate(x, range.end - range.begin, f, [&](int64_t i, vf y, int64_t n) { store_upto(out + i, y, n); });
}

template <class T>
void run(const GeluArgs& a, int index, int count) {
  a.tanh ? apply<T>(a, index, count, [](auto v) { return gelu_tanh<T>(v); })
         : apply<T>(a, index, count, [](auto v) { return gelu_exact<T>(v); });
}

}  // namespace

void gelu(const GeluArgs& a, int index, int count) {
  a.dtype == DType::f32 ? run<float>(a, index, count) : run<bf16>(a, index, count);
}

}  // namespace antiphon::ANTIPHON_ISA
