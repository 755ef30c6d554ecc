// y[t] = (x[t] W^T) scale + bias with W int8 [branches, n, k], one float scale per output channel; few rows (1..16).
//
// x is quantised row by row to 16-bit integers q (int_dot.h), the sums are exact integers, rounded once, and
//     y = float(sum of w q) * (scale * step) + bias
// in float32, so a row's result depends on neither batch, threads nor instruction set. k is a multiple of 64.
#include "kernels.h"
#include "row_runs.h"
#include "row_units.h"
#if defined(__AMX_INT8__)
#include "linear_int8_amx.h"
#elif defined(__AVX512VNNI__)
#include "linear_int8_words.h"
#else
#include "linear_int8_rows.h"
#endif

namespace antiphon::ANTIPHON_ISA {
namespace {

#if defined(__AVX512VNNI__) && !defined(__AMX_INT8__)
constexpr int64_t kWordRowsFrom = 5;  // rows of x; with fewer memory is all, and four rows of W are read more evenly
#endif

template <class T>
void int8_branch(const LinearInt8Args& a, int which, const RowUnits& units) {
  const int64_t first = which == 0 ? 0 : a.split, num_rows = (which == 0 ? a.split : a.num_rows) - first;
#if defined(__AMX_INT8__)
  const auto run = tile_linear_int8<T>;
#elif defined(__AVX512VNNI__)
  const auto run = num_rows < kWordRowsFrom ? vnni_linear_int8<T> : word_linear_int8<T>;
#else
  const auto run = rows_linear_int8<T>;
#endif
  run(static_cast<const T*>(a.x) + first * a.x_stride, a.x_stride, num_rows, a.weight + which * a.n * a.k,
      a.scale + which * a.n, a.bias ? static_cast<const T*>(a.bias) + which * a.n : nullptr,
      static_cast<T*>(a.out) + first * a.n, a.n, a.k, units);
}

template <class T>
void run_int8(const LinearInt8Args& a, int index, int count) {
  for_branches(a, a.next, unit_rows(a.k), index, count,
               [&](int which, const RowUnits& units) { int8_branch<T>(a, which, units); });
}

}  // namespace

void linear_int8(const LinearInt8Args& a, int index, int count) {
  a.dtype == DType::f32 ? run_int8<float>(a, index, count) : run_int8<bf16>(a, index, count);
}

}  // namespace antiphon::ANTIPHON_ISA
