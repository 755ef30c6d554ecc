// out[i] = round(x[rows[i]] + residual[rows[i]]): the hidden state after a layer, for the rows that go on.
#include "kernels.h"
#include "simd.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

template <class T>
void run(const GatherAddArgs& a, int index, int count) {
  const Range range = partition(a.num_rows, 1, index, count);
  for (int64_t i = range.begin; i < range.end; ++i) {
    const int64_t from = (a.rows ? a.rows[i] : i) * a.hidden;
    const T* x = static_cast<const T*>(a.x) + from;
    T* out = static_cast<T*>(a.out) + i * a.hidden;
    if (!a.residual) {
      std::memcpy(out, x, a.hidden * sizeof(T));
      continue;
    }
    const T* residual = static_cast<const T*>(a.residual) + from;
    for_vectors(a.hidden, [&](int64_t c, int64_t n) {
      store_upto(out + c, add(load_upto(x + c, n), load_upto(residual + c, n)), n);
    });
  }
}

}  // namespace

void gather_add(const GatherAddArgs& a, int index, int count) {
  a.dtype == DType::f32 ? run<float>(a, index, count) : run<bf16>(a, index, count);
}

}  // namespace antiphon::ANTIPHON_ISA
