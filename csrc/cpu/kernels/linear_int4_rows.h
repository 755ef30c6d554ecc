// int4 skinny linear through IntDot, for instruction sets without AVX512-VNNI; included by linear_int4.cpp. Groups are
// added in lanes, and lanes in the order of hsum.
#pragma once

#include "int_dot.h"
#include "kernels.h"
#include "weights_ahead.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int kInt4Rows = 2;  // rows of W side by side

template <class T>
struct Int4Problem {
  const uint8_t* w;   // [n, k / 2]
  const bf16* scale;  // [k / 128, n]
  const T* bias;
  T* out;
  int64_t n, num_rows, k;
};

struct Int4Row {
  const IntDot::Plane *high, *low;  // [k]
  const int32_t* offsets;           // [k / 128]: what the weights' offset adds to a group's sum
  float step;
};

template <class T>
Int4Row split_for_int4(const T* x, int64_t k, IntDot::Plane* planes, int32_t* offsets) {
  std::memset(offsets, 0, k / kInt4Group * sizeof(int32_t));
  const float step = split_row(x, k, [&](int64_t i, const int8_t* high, const int8_t* low, int64_t n) {
    for (int64_t j = 0; j < n; ++j) {
      planes[i + j] = high[j];
      planes[k + i + j] = low[j];
      offsets[i / kInt4Group] += (256 * high[j] + low[j]) * IntDot::int4_offset;
    }
  });
  return {planes, planes + k, offsets, step};
}

template <class T, int R>
void int4_rows(const Int4Problem<T>& p, const Int4Row* x, int64_t n) {
  constexpr int kVectors = static_cast<int>(kInt4Group) / IntDot::width;
  vf sum[kMaxSkinnyRows][R];
  for (int64_t t = 0; t < p.num_rows; ++t)
    for (int r = 0; r < R; ++r) sum[t][r] = set1(0.0f);
  const int64_t row_bytes = p.k / 2;
  LinesAhead ahead(p.w + (n + R) * row_bytes, R * row_bytes, p.k / kInt4Group);
  for (int64_t g = 0; g < p.k / kInt4Group; ++g) {
    ahead.fetch();
    IntDot::vec w[R][kVectors];
    vf scale[R];
    for (int r = 0; r < R; ++r) {
      IntDot::load_int4(p.w + (n + r) * row_bytes + g * kInt4Bytes, w[r]);
      scale[r] = set1(widen(p.scale[g * p.n + n + r]));
    }
    for (int64_t t = 0; t < p.num_rows; ++t) {
      IntDot::acc high[R], low[R];
      for (int r = 0; r < R; ++r) {
        high[r] = IntDot::start(0);
        low[r] = IntDot::start(x[t].offsets[g]);
      }
      for (int i = 0; i < kVectors; ++i) {
        const IntDot::vec xh = IntDot::load(x[t].high + g * kInt4Group + i * IntDot::width);
        const IntDot::vec xl = IntDot::load(x[t].low + g * kInt4Group + i * IntDot::width);
        for (int r = 0; r < R; ++r) {
          high[r] = IntDot::step(high[r], w[r][i], xh);
          low[r] = IntDot::step(low[r], w[r][i], xl);
        }
      }
      for (int r = 0; r < R; ++r) sum[t][r] = fmadd(IntDot::combine(high[r], low[r]), scale[r], sum[t][r]);
    }
  }
  for (int64_t t = 0; t < p.num_rows; ++t)
    for (int r = 0; r < R; ++r) {
      const float y = hsum(sum[t][r]) * x[t].step + (p.bias ? widen(p.bias[n + r]) : 0.0f);
      store_n(p.out + t * p.n + n + r, set1(y), 1);
    }
}

template <class T>
void rows_linear_int4(const T* x, int64_t x_stride, int64_t num_rows, const uint8_t* w, const bf16* scale, const T* bias,
                      T* out, int64_t n, int64_t k, RowUnits units) {
  const Int4Problem<T> p{w, scale, bias, out, n, num_rows, k};
  const int64_t plane_bytes = 2 * k * static_cast<int64_t>(sizeof(IntDot::Plane)), groups = k / kInt4Group;
  auto* memory = static_cast<char*>(scratch(num_rows * (plane_bytes + groups * 4)));
  Int4Row rows[kMaxSkinnyRows];
  for (int64_t t = 0; t < num_rows; ++t)
    rows[t] = split_for_int4(x + t * x_stride, k, reinterpret_cast<IntDot::Plane*>(memory + t * plane_bytes),
                             reinterpret_cast<int32_t*>(memory + num_rows * plane_bytes) + t * groups);
  for (Range range; units.take(range);) {
    int64_t row = range.begin;
    for (; row + kInt4Rows <= range.end; row += kInt4Rows) int4_rows<T, kInt4Rows>(p, rows, row);
    for (; row < range.end; ++row) int4_rows<T, 1>(p, rows, row);
  }
}

}  // namespace antiphon::ANTIPHON_ISA
