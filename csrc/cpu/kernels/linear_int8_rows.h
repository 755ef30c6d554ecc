// int8 skinny linear for instruction sets without AVX512-VNNI; included by linear_int8.cpp. Products are of 16-bit
// integers, so x is one plane.
#pragma once

#include "int_dot.h"
#include "kernels.h"
#include "row_units.h"
#include "weights_ahead.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int kInt8Rows = 4, kInt8Cols = 2;
// Columns whose products a sum's lanes of 32 bits hold: twice 128 * 127 * 241 a step, 2^31 / 2^23 steps.
constexpr int64_t kInt8Span = 256 * IntDot::width;
static_assert(256 * 2.0 * 128 * kLargestQuantum < 1ll << 31);

template <class T>
struct Int8Problem {
  const int8_t* w;
  const float* scale;
  const T* bias;  // or null
  T* out;         // [num_rows, n]
  int64_t n, num_rows, k;
};

// One row of x.
struct Int8Row {
  const int16_t* q;  // [k]
  float step;
};

// R rows of W from row n on, C rows of x from row t on.
template <class T, int R, int C>
inline void int8_block(const Int8Problem<T>& p, const Int8Row* x, int64_t n, int64_t t, LinesAhead& ahead) {
  int64_t totals[R][C] = {};
  for (int64_t begin = 0; begin < p.k; begin += kInt8Span) {
    IntDot::vec sums[R][C];
    for (auto& of_row : sums)
      for (IntDot::vec& sum : of_row) sum = IntDot::zero();
    for (int64_t i = begin; i < min64(begin + kInt8Span, p.k); i += IntDot::width) {
      ahead.fetch();
      IntDot::vec w[R];
      for (int r = 0; r < R; ++r) w[r] = IntDot::load_int8(p.w + (n + r) * p.k + i);
      for (int c = 0; c < C; ++c) {
        const IntDot::vec q = IntDot::load(x[t + c].q + i);
        for (int r = 0; r < R; ++r) sums[r][c] = IntDot::add(sums[r][c], IntDot::products(w[r], q));
      }
    }
#pragma GCC unroll 8  // or GCC 12 keeps sums in memory, at every step
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) totals[r][c] += IntDot::total(sums[r][c]);
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) {
      const float sum = static_cast<float>(totals[r][c]), shift = p.bias ? widen(p.bias[n + r]) : 0.0f;
      store_n(p.out + (t + c) * p.n + n + r, set1(sum * (p.scale[n + r] * x[t + c].step) + shift), 1);
    }
}

template <class T, int R>
inline void int8_rows(const Int8Problem<T>& p, const Int8Row* x, int64_t n) {
  LinesAhead ahead(p.w + (n + R) * p.k, R * p.k, (p.num_rows + kInt8Cols - 1) / kInt8Cols * (p.k / IntDot::width));
  int64_t t = 0;
  for (; t + kInt8Cols <= p.num_rows; t += kInt8Cols) int8_block<T, R, kInt8Cols>(p, x, n, t, ahead);
  for (; t < p.num_rows; ++t) int8_block<T, R, 1>(p, x, n, t, ahead);
}

template <class T>
inline void rows_linear_int8(const T* x, int64_t x_stride, int64_t num_rows, const int8_t* w, const float* scale,
                             const T* bias, T* out, int64_t n, int64_t k, RowUnits units) {
  const Int8Problem<T> p{w, scale, bias, out, n, num_rows, k};
  auto* memory = static_cast<int16_t*>(scratch(num_rows * k * static_cast<int64_t>(sizeof(int16_t))));
  Int8Row rows[kMaxSkinnyRows];
  for (int64_t t = 0; t < num_rows; ++t) {
    rows[t] = {memory + t * k, quantum(x + t * x_stride, k)};
    quantise(x + t * x_stride, k, inverse_of(rows[t].step), memory + t * k);
  }
  for (Range range; units.take(range);) {
    int64_t row = range.begin;
    for (; row + kInt8Rows <= range.end; row += kInt8Rows) int8_rows<T, kInt8Rows>(p, rows, row);
    for (; row < range.end; ++row) int8_rows<T, 1>(p, rows, row);
  }
}

}  // namespace antiphon::ANTIPHON_ISA
