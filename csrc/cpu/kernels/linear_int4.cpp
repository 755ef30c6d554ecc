// y[t] = x[t] W^T + bias with W int4 in groups of 128 columns that share a bfloat16 scale; few rows (1..16).
//
// 64 bytes hold a group: the low half of byte i is column i, the high half column 64 + i, each a value + 8. Scales are
// [branches, groups, n], so that a block of rows reads them side by side. x is quantised to 16-bit integers (int_dot.h);
// a group's sums are exact integers, and groups are added in float32 in their order, so a row's result depends on
// neither batch nor threads.
#include "kernels.h"
#include "row_runs.h"
#include "row_units.h"
#if defined(__AMX_INT8__)
#include "linear_int4_amx.h"
#else
#include "linear_int4_rows.h"
#endif
#if defined(__AVX512VNNI__) && !defined(__AMX_INT8__)
#include "linear_int4_words.h"
#endif

namespace antiphon::ANTIPHON_ISA {
namespace {

#if defined(__AMX_INT8__)
constexpr int64_t kTileRowsFrom = 3;  // rows of x; for fewer, unpacking to tiles costs more than the products save
#endif

template <class T>
void int4_branch(const LinearInt4Args& a, int which, const RowUnits& units) {
  const int64_t first = which == 0 ? 0 : a.split, num_rows = (which == 0 ? a.split : a.num_rows) - first;
  const T* x = static_cast<const T*>(a.x) + first * a.x_stride;
  const uint8_t* w = a.weight + which * a.n * a.k / 2;
  const bf16* scale = a.scale + which * (a.k / kInt4Group) * a.n;
  const T* bias = a.bias ? static_cast<const T*>(a.bias) + which * a.n : nullptr;
  T* out = static_cast<T*>(a.out) + first * a.n;
#if defined(__AMX_INT8__)
  const auto run = num_rows < kTileRowsFrom ? vnni_linear_int4<T> : tile_linear_int4<T>;
#elif defined(__AVX512VNNI__)
  const auto run = num_rows <= kInt4FewRows ? rows_linear_int4<T> : word_linear_int4<T>;
#else
  const auto run = rows_linear_int4<T>;
#endif
  run(x, a.x_stride, num_rows, w, scale, bias, out, a.n, a.k, units);
}

template <class T>
void run_int4(const LinearInt4Args& a, int index, int count) {
  std::atomic<int64_t>* next = a.next;
#if defined(__AMX_INT8__)
  if (max64(a.split, a.num_rows - a.split) >= kTileRowsFrom) next = nullptr;  // their pipeline is long: one range
#endif
  for_branches(a, next, unit_rows(a.k / 2), index, count,
               [&](int which, const RowUnits& units) { int4_branch<T>(a, which, units); });
}

}  // namespace

void linear_int4(const LinearInt4Args& a, int index, int count) {
  a.dtype == DType::f32 ? run_int4<float>(a, index, count) : run_int4<bf16>(a, index, count);
}

}  // namespace antiphon::ANTIPHON_ISA
