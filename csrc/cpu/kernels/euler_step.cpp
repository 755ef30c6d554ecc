// x += dt * v: product and sum in float32, one rounding.
#include "kernels.h"
#include "simd.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

template <class T>
void run(const EulerStepArgs& a, int index, int count) {
  const Range range = partition(a.size, VF, index, count);
  T* x = static_cast<T*>(a.x) + range.begin;
  const T* v = static_cast<const T*>(a.v) + range.begin;
  for_vectors(range.end - range.begin, [&](int64_t i, int64_t n) {
    store_upto(x + i, add(load_upto(x + i, n), mul(set1(a.dt), load_upto(v + i, n))), n);
  });
}

}  // namespace

void euler_step(const EulerStepArgs& a, int index, int count) {
  a.dtype == DType::f32 ? run<float>(a, index, count) : run<bf16>(a, index, count);
}

}  // namespace antiphon::ANTIPHON_ISA
