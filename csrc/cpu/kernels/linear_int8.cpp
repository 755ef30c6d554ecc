// y[t] = (x[t] W^T) scale + bias with W int8 [branches, n, k], one float scale per output channel; few rows (1..16).
//
// x is quantised row by row into two int8 planes (int_dot.h), the sums are exact integers and
//     y = (256 sum_high + sum_low) * (scale * step) + bias
// in float32, so a row's result depends on neither batch, threads nor instruction set. k is a multiple of 64.
#include "int_dot.h"
#include "kernels.h"
#include "row_runs.h"
#include "row_units.h"
#include "weights_ahead.h"
#if defined(__AMX_INT8__)
#include "linear_int8_amx.h"
#elif defined(__AVX512VNNI__)
#include "linear_int8_words.h"
#endif

namespace antiphon::ANTIPHON_ISA {
namespace {

#if defined(__AVX512VNNI__) && !defined(__AMX_INT8__)
constexpr int64_t kWordRowsFrom = 5;  // rows of x; with fewer memory is all, and four rows of W are read more evenly
#elif !defined(__AVX512VNNI__)
constexpr int kInt8Rows = 4, kInt8Cols = 2;

template <class T>
struct Int8Problem {
  const int8_t* w;
  const float* scale;
  const T* bias;  // or null
  T* out;         // row t at out + t * out_stride
  int64_t out_stride, num_rows, k;
};

// The planes of one row of x, and what an offset in the weights adds to their sums.
struct Planes {
  const IntDot::Plane *high, *low;
  float step;
  int32_t high_offset, low_offset;
};

template <class T>
void split_rows(const T* x, int64_t stride, int64_t num_rows, int64_t k, IntDot::Plane* memory, Planes* planes) {
  for (int64_t t = 0; t < num_rows; ++t) {
    IntDot::Plane *high = memory + 2 * t * k, *low = high + k;
    int32_t high_sum = 0, low_sum = 0;
    const float step = split_row(x + t * stride, k, [&](int64_t i, const int8_t* h, const int8_t* l, int64_t n) {
      for (int64_t j = 0; j < n; ++j) {
        high[i + j] = h[j];
        low[i + j] = l[j];
        high_sum += h[j];
        low_sum += l[j];
      }
    });
    planes[t] = {high, low, step, high_sum * IntDot::int8_offset, low_sum * IntDot::int8_offset};
  }
}

template <class T, int R, int C>
void int8_block(const Int8Problem<T>& p, const Planes* x, int64_t n, int64_t t, LinesAhead& ahead) {
  IntDot::acc high[R][C], low[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) {
      high[r][c] = IntDot::start(x[t + c].high_offset);
      low[r][c] = IntDot::start(x[t + c].low_offset);
    }
  for (int64_t i = 0; i < p.k; i += IntDot::width) {
    ahead.fetch();
    IntDot::vec w[R];
    for (int r = 0; r < R; ++r) w[r] = IntDot::load_int8(p.w + (n + r) * p.k + i);
    for (int c = 0; c < C; ++c) {
      const IntDot::vec xh = IntDot::load(x[t + c].high + i), xl = IntDot::load(x[t + c].low + i);
      for (int r = 0; r < R; ++r) {
        high[r][c] = IntDot::step(high[r][c], w[r], xh);
        low[r][c] = IntDot::step(low[r][c], w[r], xl);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) {
      const float sum = static_cast<float>(IntDot::total(high[r][c])) * 256.0f +
                        static_cast<float>(IntDot::total(low[r][c]));
      const float y = sum * (p.scale[n + r] * x[t + c].step) + (p.bias ? widen(p.bias[n + r]) : 0.0f);
      store_n(p.out + (t + c) * p.out_stride + n + r, set1(y), 1);
    }
}

template <class T, int R>
void int8_rows(const Int8Problem<T>& p, const Planes* x, int64_t n) {
  LinesAhead ahead(p.w + (n + R) * p.k, R * p.k, (p.num_rows + kInt8Cols - 1) / kInt8Cols * (p.k / IntDot::width));
  int64_t t = 0;
  for (; t + kInt8Cols <= p.num_rows; t += kInt8Cols) int8_block<T, R, kInt8Cols>(p, x, n, t, ahead);
  for (; t < p.num_rows; ++t) int8_block<T, R, 1>(p, x, n, t, ahead);
}

template <class T>
void rows_linear_int8(const T* x, int64_t x_stride, int64_t num_rows, const int8_t* w, const float* scale, const T* bias,
                      T* out, int64_t n, int64_t k, RowUnits units) {
  const Int8Problem<T> p{w, scale, bias, out, n, num_rows, k};
  Planes planes[kMaxSkinnyRows];
  auto* memory = static_cast<IntDot::Plane*>(scratch(2 * num_rows * k * static_cast<int64_t>(sizeof(IntDot::Plane))));
  split_rows(x, x_stride, num_rows, k, memory, planes);
  for (Range range; units.take(range);) {
    int64_t row = range.begin;
    for (; row + kInt8Rows <= range.end; row += kInt8Rows) int8_rows<T, kInt8Rows>(p, planes, row);
    for (; row < range.end; ++row) int8_rows<T, 1>(p, planes, row);
  }
}
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
