// y[t] = x[t] W[branch]^T + bias[branch] for few rows (1..16): bound by reading W once.
//
// W [B, N, K] row-major; rows [0, split) of x use branch 0, the rest branch 1. Every output element is one vector of
// partial sums over k = lane, lane + width, ..., then hsum: its value depends on its own row of x and of W only, hence
// not on the number of rows, threads or blocks. Sums in float32, bias added in float32, one rounding at the store.
//
// linear_rows.h has the sums of vectors, linear_amx.h those of tiles.
#include "kernels.h"
#include "linear_rows.h"
#include "row_runs.h"
#include "row_units.h"
#if defined(__AMX_BF16__)
#include "linear_amx.h"
#endif

namespace antiphon::ANTIPHON_ISA {
namespace {

template <class T>
void branch(const LinearArgs& a, int which, RowUnits units) {
  const int64_t first = which == 0 ? 0 : a.split, last = which == 0 ? a.split : a.num_rows;
  const RowProblem<T> p{static_cast<const T*>(a.x) + first * a.x_stride, a.x_stride, last - first, a.k};
  const T* w = static_cast<const T*>(a.weight) + which * a.n * a.w_stride;
  const T* bias = a.bias ? static_cast<const T*>(a.bias) + which * a.n : nullptr;
  T* out = static_cast<T*>(a.out) + first * a.n;
#if defined(__AMX_BF16__)
  if constexpr (sizeof(T) == sizeof(bf16)) {
    auto* pairs = static_cast<uint32_t*>(scratch((p.k + kTileK) * 2 * p.num_rows));
    return tile_linear(p.x, p.x_stride, p.num_rows, w, a.w_stride, p.k, bias, out, a.n, units, pairs);
  }
#endif
  for (Range range; units.take(range);) {
    int64_t n = range.begin;
    const auto block = [&](auto run, int64_t rows) {
      const T* first = w + n * a.w_stride;
      LinesAhead ahead(first + rows * a.w_stride, rows * a.w_stride * static_cast<int64_t>(sizeof(T)), block_steps(p));
      run(p, StoredRows<T>{first, a.w_stride}, bias ? bias + n : nullptr, out + n, a.n, ahead);
      n += rows;
    };
    while (n + kBlockRows <= range.end) block(row_block<T, kBlockRows, StoredRows<T>>, kBlockRows);
    while (n < range.end) block(row_block<T, 1, StoredRows<T>>, 1);
  }
}

template <class T>
void run(const LinearArgs& a, int index, int count) {
  for_branches(a, a.next, unit_rows(a.w_stride * static_cast<int64_t>(sizeof(T))), index, count,
               [&](int which, const RowUnits& units) { branch<T>(a, which, units); });
}

}  // namespace

void linear(const LinearArgs& a, int index, int count) {
  a.dtype == DType::f32 ? run<float>(a, index, count) : run<bf16>(a, index, count);
}

}  // namespace antiphon::ANTIPHON_ISA
