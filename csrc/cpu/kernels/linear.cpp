// y[t] = x[t] W[branch]^T + bias[branch] for few rows (1..16): bound by reading W once.
//
// W [B, N, K] row-major; rows [0, split) of x use branch 0, the rest branch 1. Every output element is one vector of
// partial sums over k = lane, lane + width, ..., then hsum: its value depends on its own row of x and of W only, hence
// not on the number of rows, threads or blocks. Sums in float32, bias added in float32, one rounding at the store.
//
// A block is 4 rows of W against up to 4 rows of x (16 accumulators). K is walked in chunks short enough that a chunk
// of the 4 rows of W, once read from memory, stays in the first-level cache for the other blocks of x rows.
#include "kernels.h"
#include "row_runs.h"
#include "row_units.h"
#include "simd.h"
#if defined(__AMX_BF16__)
#include "linear_amx.h"
#endif

namespace antiphon::ANTIPHON_ISA {
namespace {

constexpr int kRows = 4;
constexpr int kCols = 4;
constexpr int64_t kChunkBytes = 4096;   // of one row of W
constexpr int64_t kPrefetchBytes = 1024;

template <class T>
struct Problem {
  const T* x;
  int64_t x_stride, w_stride;
  int64_t num_rows, k;
};

// acc[r][c] += W rows r . x rows c over elements [begin, end)
template <class T, int R, int C>
inline void accumulate(const T* const* w, const T* const* x, int64_t begin, int64_t end, vf (&acc)[kRows][kCols]) {
  using D = Dot<T>;
  vf sum[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) sum[r][c] = acc[r][c];
  int64_t k = begin;
  for (; k + D::width <= end; k += D::width) {
    typename D::vec columns[C];
    for (int c = 0; c < C; ++c) columns[c] = D::load(x[c] + k);
    for (int r = 0; r < R; ++r) {
      prefetch(reinterpret_cast<const char*>(w[r] + k) + kPrefetchBytes);
      const typename D::vec row = D::load(w[r] + k);
      for (int c = 0; c < C; ++c) sum[r][c] = D::step(sum[r][c], row, columns[c]);
    }
  }
  if (k < end)
    for (int r = 0; r < R; ++r) {
      const typename D::vec row = D::load_n(w[r] + k, end - k);
      for (int c = 0; c < C; ++c) sum[r][c] = D::step(sum[r][c], row, D::load_n(x[c] + k, end - k));
    }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) acc[r][c] = sum[r][c];
}

template <class T, int R>
inline void accumulate_columns(int c, const T* const* w, const T* const* x, int64_t begin, int64_t end,
                               vf (&acc)[kRows][kCols]) {
  switch (c) {
    case 1: return accumulate<T, R, 1>(w, x, begin, end, acc);
    case 2: return accumulate<T, R, 2>(w, x, begin, end, acc);
    case 3: return accumulate<T, R, 3>(w, x, begin, end, acc);
    default: return accumulate<T, R, 4>(w, x, begin, end, acc);
  }
}

// R rows of W from `w` on against all rows of the problem; out[t * out_stride + r].
template <class T, int R>
void block(const Problem<T>& p, const T* w, const T* bias, T* out, int64_t out_stride) {
  vf acc[kMaxSkinnyRows / kCols][kRows][kCols];
  const T* rows[R];
  for (int r = 0; r < R; ++r) rows[r] = w + r * p.w_stride;
  const int64_t groups = (p.num_rows + kCols - 1) / kCols;
  for (int64_t g = 0; g < groups; ++g)
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < kCols; ++c) acc[g][r][c] = set1(0.0f);
  const int64_t chunk = groups == 1 ? p.k : kChunkBytes / static_cast<int64_t>(sizeof(T));
  for (int64_t begin = 0; begin < p.k; begin += chunk)
    for (int64_t g = 0; g < groups; ++g) {
      const T* columns[kCols];
      const int64_t count = min64(kCols, p.num_rows - g * kCols);
      for (int64_t c = 0; c < count; ++c) columns[c] = p.x + (g * kCols + c) * p.x_stride;
      accumulate_columns<T, R>(static_cast<int>(count), rows, columns, begin, min64(begin + chunk, p.k), acc[g]);
    }
  for (int64_t t = 0; t < p.num_rows; ++t)
    for (int r = 0; r < R; ++r) {
      const float sum = hsum(acc[t / kCols][r][t % kCols]) + (bias ? widen(bias[r]) : 0.0f);
      store_n(out + t * out_stride + r, set1(sum), 1);
    }
}

template <class T>
void branch(const LinearArgs& a, int which, RowUnits units) {
  const int64_t first = which == 0 ? 0 : a.split, last = which == 0 ? a.split : a.num_rows;
  const Problem<T> p{static_cast<const T*>(a.x) + first * a.x_stride, a.x_stride, a.w_stride, last - first, a.k};
  const T* w = static_cast<const T*>(a.weight) + which * a.n * a.w_stride;
  const T* bias = a.bias ? static_cast<const T*>(a.bias) + which * a.n : nullptr;
  T* out = static_cast<T*>(a.out) + first * a.n;
#if defined(__AMX_BF16__)
  if constexpr (sizeof(T) == sizeof(bf16)) {
    auto* pairs = static_cast<uint32_t*>(scratch((p.k + kTileK) * 2 * p.num_rows));
    return tile_linear(p.x, p.x_stride, p.num_rows, w, p.w_stride, p.k, bias, out, a.n, units, pairs);
  }
#endif
  for (Range range; units.take(range);) {
    int64_t n = range.begin;
    for (; n + kRows <= range.end; n += kRows)
      block<T, kRows>(p, w + n * a.w_stride, bias ? bias + n : nullptr, out + n, a.n);
    for (; n < range.end; ++n) block<T, 1>(p, w + n * a.w_stride, bias ? bias + n : nullptr, out + n, a.n);
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
