// out[r] = x[r] + gate[r / frames_per_token] * y[r], in float32, one rounding.
#include "kernels.h"
#include "simd.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

template <class T>
void run(const GateResidualArgs& a, int index, int count) {
  const Range range = partition(a.num_rows, 1, index, count);
  for (int64_t r = range.begin; r < range.end; ++r) {
    const T* x = static_cast<const T*>(a.x) + r * a.hidden;
    const T* y = static_cast<const T*>(a.y) + r * a.hidden;
    const T* gate = static_cast<const T*>(a.gate) + r / a.frames_per_token * a.gate_stride;
    T* out = static_cast<T*>(a.out) + r * a.hidden;
    for_vectors(a.hidden, [&](int64_t i, int64_t n) {
      store_upto(out + i, fmadd(load_upto(gate + i, n), load_upto(y + i, n), load_upto(x + i, n)), n);
    });
  }
}

}  // namespace

void gate_residual(const GateResidualArgs& a, int index, int count) {
  a.dtype == DType::f32 ? run<float>(a, index, count) : run<bf16>(a, index, count);
}

}  // namespace antiphon::ANTIPHON_ISA
