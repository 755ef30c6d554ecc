// Rows of W against few rows of x in vectors: every sum is one vector of partial sums over k = lane, lane + width, ...,
// then hsum, whatever stands beside it.
//
// W is of the rows' dtype, or bfloat16 that meets float32: widened, the sums are those of a W of float32.
//
// A block is 4 rows of W against up to 4 rows of x, 2 with AVX2. k is walked in chunks short enough that a chunk of
// all rows of x, and of the 4 rows of W once it is read from memory, stays in the first-level cache. What is read after
// the block is asked for evenly in the meantime.
#pragma once

#include <type_traits>

#include "kernels.h"
#include "simd.h"
#include "weights_ahead.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int kBlockRows = 4;
constexpr int kBlockCols = VF == 8 ? 2 : 4;  // AVX2 has 16 registers
constexpr int64_t kRowsCached = 12 << 10;  // bytes of x
constexpr int64_t kSumsTogether = 8;       // of 16 lanes, from which on adding them up side by side is less work

template <class T>
struct RowProblem {
  const T* x;
  int64_t x_stride, num_rows, k;
};

// Elements of W as they meet rows of T.
template <class T, class W>
inline typename Dot<T>::vec load_weights(const W* w) {
  if constexpr (std::is_same_v<T, W>)
    return Dot<T>::load(w);
  else
    return load(w);
}
template <class T, class W>
inline typename Dot<T>::vec load_weights_n(const W* w, int64_t n) {
  if constexpr (std::is_same_v<T, W>)
    return Dot<T>::load_n(w, n);
  else
    return load_n(w, n);
}

// acc[r][c] += W rows r . x rows c over so many elements
template <class T, int R, int C, class W>
inline void accumulate(const W* const* w, const T* const* x, int64_t size, LinesAhead& ahead,
                       vf (&acc)[kBlockRows][kBlockCols]) {
  using D = Dot<T>;
  vf sum[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) sum[r][c] = acc[r][c];
  int64_t k = 0;
  for (; k + D::width <= size; k += D::width) {
    ahead.fetch();
    typename D::vec columns[C];
    for (int c = 0; c < C; ++c) columns[c] = D::load(x[c] + k);
    for (int r = 0; r < R; ++r) {
      const typename D::vec row = load_weights<T>(w[r] + k);
      for (int c = 0; c < C; ++c) sum[r][c] = D::step(sum[r][c], row, columns[c]);
    }
  }
  if (k < size)
    for (int r = 0; r < R; ++r) {
      const typename D::vec row = load_weights_n<T>(w[r] + k, size - k);
      for (int c = 0; c < C; ++c) sum[r][c] = D::step(sum[r][c], row, D::load_n(x[c] + k, size - k));
    }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) acc[r][c] = sum[r][c];
}

// For `count` rows of x, at most C.
template <class T, int R, int C = kBlockCols, class W>
inline void accumulate_columns(int64_t count, const W* const* w, const T* const* x, int64_t size, LinesAhead& ahead,
                               vf (&acc)[kBlockRows][kBlockCols]) {
  if constexpr (C > 1)
    if (count < C) return accumulate_columns<T, R, C - 1>(count, w, x, size, ahead, acc);
  accumulate<T, R, C>(w, x, size, ahead, acc);
}

// out[c * out_stride + r] = the sum of acc[r][c]'s lanes + bias[r], of R rows of W and `count` rows of x.
template <int R, class T>
inline void row_results(const vf (&acc)[kBlockRows][kBlockCols], int64_t count, const T* bias, T* out,
                        int64_t out_stride) {
  for (int64_t c = 0; c < count; ++c)
    for (int r = 0; r < R; ++r)
      store_n(out + c * out_stride + r, set1(hsum(acc[r][c]) + (bias ? widen(bias[r]) : 0.0f)), 1);
}

// The same for VF sums at once.
template <int R, class T>
inline void row_results_together(const vf (&acc)[kBlockRows][kBlockCols], int64_t count, const T* bias, T* out,
                                 int64_t out_stride) {
  constexpr int kSums = R * kBlockCols, kPadded = (kSums + VF - 1) / VF * VF;
  alignas(64) float biases[kPadded] = {};
  for (int i = 0; bias && i < kSums; ++i) biases[i] = widen(bias[i % R]);
  T results[kPadded];
  for (int i = 0; i < kPadded; i += VF) {
    vf v[VF];
    for (int j = 0; j < VF; ++j) v[j] = i + j < kSums ? acc[(i + j) % R][(i + j) / R] : set1(0.0f);
    store(results + i, add(hsums(v), load(biases + i)));
  }
  for (int64_t c = 0; c < count; ++c) std::memcpy(out + c * out_stride, results + c * R, R * sizeof(T));
}

// Steps of a block, of which each may ask for something.
template <class T>
inline int64_t block_steps(const RowProblem<T>& p) {
  return (p.num_rows + kBlockCols - 1) / kBlockCols * max64(1, p.k / Dot<T>::width);
}

// Rows of W as they lie. Columns [begin, end) of row r stand at at(begin, end) + r * stride; it is asked for from left to
// right, for at most kMost of them, a multiple of kColumns or what is left.
template <class W>
struct StoredRows {
  static constexpr int64_t kColumns = 1, kMost = INT64_MAX;
  const W* w;
  int64_t stride;
  const W* at(int64_t begin, int64_t) const { return w + begin; }
};

// R rows of W against all rows of the problem; out[t * out_stride + r].
template <class T, int R, class Rows>
inline void row_block(const RowProblem<T>& p, Rows w, const T* bias, T* out, int64_t out_stride, LinesAhead& ahead) {
  using W = std::remove_const_t<std::remove_pointer_t<decltype(w.at(0, 0))>>;
  constexpr int64_t kWidth = Dot<T>::width;
  vf acc[kMaxSkinnyRows / kBlockCols][kBlockRows][kBlockCols];
  const int64_t groups = (p.num_rows + kBlockCols - 1) / kBlockCols;
  for (int64_t g = 0; g < groups; ++g)
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < kBlockCols; ++c) acc[g][r][c] = set1(0.0f);
  const int64_t most = kRowsCached / (p.num_rows * kWidth * static_cast<int64_t>(sizeof(T)));
  const int64_t cached = min64(groups == 1 ? p.k : max64(1, most) * kWidth, Rows::kMost);
  const int64_t chunk = max64(1, cached / Rows::kColumns) * Rows::kColumns;
  for (int64_t begin = 0; begin < p.k; begin += chunk) {
    const int64_t end = min64(begin + chunk, p.k);
    const W *first = w.at(begin, end), *rows[R];
    for (int r = 0; r < R; ++r) rows[r] = first + r * w.stride;
    for (int64_t g = 0; g < groups; ++g) {
      const T* columns[kBlockCols];
      const int64_t count = min64(kBlockCols, p.num_rows - g * kBlockCols);
      for (int64_t c = 0; c < count; ++c) columns[c] = p.x + (g * kBlockCols + c) * p.x_stride + begin;
      accumulate_columns<T, R>(count, rows, columns, end - begin, ahead, acc[g]);
    }
  }
  for (int64_t t = 0; t < p.num_rows; t += kBlockCols, out += kBlockCols * out_stride) {
    const int64_t count = min64(kBlockCols, p.num_rows - t);
    if (VF == 16 && count * R >= kSumsTogether)
      row_results_together<R>(acc[t / kBlockCols], count, bias, out, out_stride);
    else
      row_results<R>(acc[t / kBlockCols], count, bias, out, out_stride);
  }
}

}  // namespace antiphon::ANTIPHON_ISA
