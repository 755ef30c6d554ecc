// int8 skinny linear with AVX512-VNNI, for the fewest rows of x; linear_int8_words.h, for more, includes it.
//
// Four rows of W by two rows of x at a time, each in two planes: 16 sums. W is read as one stream, the four rows after
// those at work asked for evenly while all of x passes by. k is walked in chunks of which x stays in the first-level
// cache.
#pragma once

#include "int_dot.h"
#include "kernels.h"
#include "row_units.h"
#include "weights_ahead.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int kVnniRows = 4, kVnniCols = 2;
constexpr int64_t kPlanesCached = 24 << 10;  // bytes of x

// One row of x.
struct Int8Planes {
  int8_t *high, *low;                 // [k]
  float step;
  int32_t high_offset, low_offset;    // what an offset of 128 in the weights adds to their sums
};

template <class T>
inline void split_int8_planes(const T* x, int64_t k, Int8Planes& out) {
  __m512i sums[2] = {};
  out.step = quantum(x, k);
  const vf inverse = set1(inverse_of(out.step));
  for (int64_t i = 0; i < k; i += IntDot::width) split_line(x + i, inverse, out.high + i, out.low + i, sums);
  out.high_offset = IntDot::int8_offset * IntDot::total(sums[0]);
  out.low_offset = IntDot::int8_offset * IntDot::total(sums[1]);
}

// sums[plane][c][r] of R rows of W, k apart, and C rows of x over columns [begin, end): those that `held` has, or the
// offsets', and the products.
template <int R, int C>
inline void int8_products(const int8_t* w, int64_t k, const Int8Planes* x, int64_t begin, int64_t end, LinesAhead& ahead,
                          const __m512i* held, __m512i (&sums)[2][C][R]) {
  for (int c = 0; c < C; ++c)
    for (int r = 0; r < R; ++r) {
      sums[0][c][r] = begin ? held[c * R + r] : IntDot::start(x[c].high_offset);
      sums[1][c][r] = begin ? held[(C + c) * R + r] : IntDot::start(x[c].low_offset);
    }
  for (int64_t i = begin; i < end; i += IntDot::width) {
    ahead.fetch();
    __m512i rows[R];
    for (int r = 0; r < R; ++r) rows[r] = IntDot::load_int8(w + r * k + i);
    for (int c = 0; c < C; ++c) {
      const __m512i high = _mm512_load_si512(x[c].high + i), low = _mm512_load_si512(x[c].low + i);
      for (int r = 0; r < R; ++r) {
        sums[0][c][r] = IntDot::step(sums[0][c][r], rows[r], high);
        sums[1][c][r] = IntDot::step(sums[1][c][r], rows[r], low);
      }
    }
  }
}

// What R rows of W share, in lanes c * R + r.
template <int R>
struct Int8Scales {
  vf scale, bias;

  template <class T>
  Int8Scales(const float* of_rows, const T* bias_of_rows) {
    alignas(64) float lanes[2][16] = {};
    for (int i = 0; i < kVnniCols * R; ++i) {
      lanes[0][i] = of_rows[i % R];
      lanes[1][i] = bias_of_rows ? widen(bias_of_rows[i % R]) : 0.0f;
    }
    scale = load(lanes[0]);
    bias = load(lanes[1]);
  }
};

// out[c * n + r] of int8_products' sums.
template <int R, int C, class T>
inline void int8_results(const __m512i (&sums)[2][C][R], const Int8Scales<R>& of_rows, const Int8Planes* x, T* out,
                         int64_t n) {
  static_assert(2 * C * R <= 16, "the sums of both planes are added up together");
  __m512i v[16];
  for (int i = 0; i < 16; ++i) v[i] = i < 2 * C * R ? sums[i / (C * R)][i / R % C][i % R] : _mm512_setzero_si512();
  alignas(64) int32_t totals[16 + C * R] = {};
  _mm512_store_si512(totals, sum_of_each(v));
  const vf sum = IntDot::combine(_mm512_load_si512(totals), _mm512_loadu_si512(totals + C * R));
  vf step = set1(x[0].step);
  for (int c = 1; c < C; ++c)
    step = _mm512_mask_blend_ps(static_cast<__mmask16>(0xffff << c * R), step, set1(x[c].step));
  T results[16];
  store(results, add(mul(sum, mul(of_rows.scale, step)), of_rows.bias));
  for (int c = 0; c < C; ++c) std::memcpy(out + c * n, results + c * R, R * sizeof(T));
}

// R rows of W, their columns [begin, end), against C rows of x; results are made at the end of k.
template <int R, int C, class T>
inline void int8_part(const int8_t* w, int64_t k, const Int8Planes* x, int64_t begin, int64_t end, LinesAhead& ahead,
                      __m512i* held, const Int8Scales<R>& of_rows, T* out, int64_t n) {
  __m512i sums[2][C][R];
  int8_products<R, C>(w, k, x, begin, end, ahead, held, sums);
  if (end == k) return int8_results<R, C>(sums, of_rows, x, out, n);
  for (int i = 0; i < 2 * C * R; ++i) held[i] = sums[i / (C * R)][i / R % C][i % R];
}

// R rows of W against all rows of x.
template <int R, class T>
inline void int8_block(const int8_t* w, int64_t k, const Int8Planes* x, int64_t num_rows, const float* scale,
                       const T* bias, T* out, int64_t n) {
  alignas(64) __m512i held[(kMaxSkinnyRows + kVnniCols - 1) / kVnniCols][2 * kVnniCols * R];
  const Int8Scales<R> of_rows(scale, bias);
  const int64_t parts = (num_rows + kVnniCols - 1) / kVnniCols;
  const int64_t chunk = max64(1, kPlanesCached / (2 * num_rows * IntDot::width)) * IntDot::width;
  LinesAhead ahead(w + R * k, R * k, parts * (k / IntDot::width));
  for (int64_t begin = 0; begin < k; begin += chunk) {
    const int64_t end = min64(begin + chunk, k);
    for (int64_t t = 0; t < num_rows; t += kVnniCols) {
      const auto run = t + 1 < num_rows ? int8_part<R, 2, T> : int8_part<R, 1, T>;
      run(w, k, x + t, begin, end, ahead, held[t / kVnniCols], of_rows, out + t * n, n);
    }
  }
}

template <class T>
inline void vnni_linear_int8(const T* x, int64_t x_stride, int64_t num_rows, const int8_t* w, const float* scale,
                             const T* bias, T* out, int64_t n, int64_t k, RowUnits units) {
  Int8Planes planes[kMaxSkinnyRows];
  auto* memory = static_cast<int8_t*>(scratch(2 * num_rows * k));
  for (int64_t t = 0; t < num_rows; ++t) {
    planes[t] = {memory + 2 * t * k, memory + (2 * t + 1) * k, 0.0f, 0, 0};
    split_int8_planes(x + t * x_stride, k, planes[t]);
  }
  for (Range range; units.take(range);) {
    int64_t row = range.begin;
    for (; row + kVnniRows <= range.end; row += kVnniRows)
      int8_block<kVnniRows>(w + row * k, k, planes, num_rows, scale + row, bias ? bias + row : nullptr, out + row, n);
    for (; row < range.end; ++row)
      int8_block<1>(w + row * k, k, planes, num_rows, scale + row, bias ? bias + row : nullptr, out + row, n);
  }
}

}  // namespace antiphon::ANTIPHON_ISA
