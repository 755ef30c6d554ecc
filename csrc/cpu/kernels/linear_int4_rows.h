// int4 skinny linear, VF rows of W at a time; included by linear_int4.cpp. For any number of rows of x without AVX512-VNNI,
// with it for one and two, which only wait for memory: fewer rows of W at a time than in linear_int4_words.h are read
// faster.
//
// Bytes of W, 0 to 15, meet the bytes of x's planes, 256 high + low, and the exact sums of a group over the lanes of VF rows
// become a vector with a row a lane. Without VNNI a group's products fit sums of 16 bits.
#pragma once

#include "int_dot.h"
#include "kernels.h"
#include "row_units.h"
#include "weights_ahead.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int kInt4Rows = VF;                                // rows of W
constexpr int kInt4Shared = VF == 16 ? 4 : VF == 8 ? 2 : 1;  // of them that meet what is loaded of x, as registers allow
constexpr int kInt4Vectors = static_cast<int>(kInt4Group) / IntDot::bytes;
static_assert(VF == 1 || kInt4Vectors * 2 * 15 * 128 < 1 << 15, "without VNNI a group's products fit 16 bits");
constexpr int64_t kInt4FewRows = 2;  // of x, which have a loop of their own

// A row of x: planes [k / 128][high, low][128], and per group 8 times the sum of its q, for the weights' offset.
struct Int4Row {
  int8_t* planes;
  int32_t* offsets;
  float step;
};

template <class T>
inline void split_int4_row(const T* x, int64_t k, Int4Row& out) {
  out.step = quantum(x, k);
  int8_t* to = out.planes;
  for (int64_t g = 0; g < k / kInt4Group; ++g, x += kInt4Group, to += 2 * kInt4Group) {
#if defined(__AVX512VNNI__)
    __m512i sums[2] = {};
    for (int64_t i = 0; i < kInt4Group; i += IntDot::width)
      split_line(x + i, set1(inverse_of(out.step)), to + i, to + kInt4Group + i, sums);
    out.offsets[g] = 8 * IntDot::total(_mm512_add_epi32(_mm512_slli_epi32(sums[0], 8), sums[1]));
#else
    alignas(64) int16_t q[kInt4Group];
    quantise(x, kInt4Group, inverse_of(out.step), q);
    int32_t sum = 0;
    for (int64_t i = 0; i < kInt4Group; ++i) {
      to[i] = static_cast<int8_t>((q[i] + 128) >> 8);
      to[kInt4Group + i] = static_cast<int8_t>(q[i] & 255);
      sum += q[i];
    }
    out.offsets[g] = 8 * sum;
#endif
  }
}

// sums[r], over all lanes: a group of row r of W by a group of x, whose planes these are.
template <int R>
inline void int4_products(const IntDot::vec (&w)[R][kInt4Vectors], const int8_t* x, IntDot::vec* sums) {
  IntDot::vec of_plane[2][R];
  for (int plane = 0; plane < 2; ++plane)
    for (int i = 0; i < kInt4Vectors; ++i) {
      const IntDot::vec columns = IntDot::load(x + plane * kInt4Group + i * IntDot::bytes);
      for (int r = 0; r < R; ++r) {
        IntDot::vec& sum = of_plane[plane][r];
        sum = i ? IntDot::byte_products(sum, w[r][i], columns) : IntDot::byte_products(w[r][i], columns);
      }
    }
  for (int r = 0; r < R; ++r) sums[r] = IntDot::of_planes(of_plane[0][r], of_plane[1][r]);
}

// `rows` rows of W, at most kInt4Rows, zeros behind them, against num_rows rows of x: kMost, or if those are kMaxSkinnyRows
// any number; scale, bias and out are those of the first.
template <int kMost, class T>
inline void int4_panel(const uint8_t* w, const bf16* scale, const T* bias, int64_t n, int64_t k, int64_t rows,
                       const Int4Row* x, int64_t num_rows, LinesAhead ahead, T* out) {
  const int64_t groups = k / kInt4Group;
  if constexpr (kMost < kMaxSkinnyRows) num_rows = kMost;  // and sums stay in registers
  vf sums[kMost];
  for (vf& sum : sums) sum = set1(0.0f);
  for (int64_t g = 0; g < groups; ++g) {
    IntDot::vec products[kMost][kInt4Rows];
    for (int r = 0; r < kInt4Rows; r += kInt4Shared) {
      ahead.fetch();
      IntDot::vec columns[kInt4Shared][kInt4Vectors];
      for (int i = 0; i < kInt4Shared; ++i) IntDot::load_int4(w + ((r + i) * groups + g) * kInt4Bytes, columns[i]);
      for (int64_t t = 0; t < num_rows; ++t)
        int4_products<kInt4Shared>(columns, x[t].planes + g * 2 * kInt4Group, products[t] + r);
    }
    prefetch(scale + g * n + kInt4Rows);
    const vf factor = load_upto(scale + g * n, rows);
    for (int64_t t = 0; t < num_rows; ++t)
      sums[t] = fmadd(IntDot::less(sum_of_each(products[t]), x[t].offsets[g]), factor, sums[t]);
  }
  const vf shift = bias ? load_upto(bias, rows) : set1(0.0f);
  for (int64_t t = 0; t < num_rows; ++t) store_upto(out + t * n, add(mul(sums[t], set1(x[t].step)), shift), rows);
}

template <class T>
inline void rows_linear_int4(const T* x, int64_t x_stride, int64_t num_rows, const uint8_t* w, const bf16* scale,
                             const T* bias, T* out, int64_t n, int64_t k, RowUnits units) {
  const int64_t groups = k / kInt4Group, row_bytes = groups * kInt4Bytes, block_bytes = kInt4Rows * row_bytes;
  auto* memory = static_cast<char*>(scratch(num_rows * (2 * k + 4 * groups) + block_bytes));
  auto* tail = reinterpret_cast<uint8_t*>(memory + num_rows * 2 * k);  // the last rows of W, zero-padded
  auto* offsets = reinterpret_cast<int32_t*>(tail + block_bytes);
  Int4Row split[kMaxSkinnyRows];
  for (int64_t t = 0; t < num_rows; ++t) {
    split[t] = {reinterpret_cast<int8_t*>(memory) + 2 * t * k, offsets + t * groups, 0.0f};
    split_int4_row(x + t * x_stride, k, split[t]);
  }
  for (Range range; units.take(range);)
    for (int64_t row = range.begin; row < range.end; row += kInt4Rows) {
      const int64_t rows = min64(kInt4Rows, range.end - row);
      const uint8_t* first = w + row * row_bytes;
      const LinesAhead ahead(first + rows * row_bytes, rows * row_bytes, groups * (kInt4Rows / kInt4Shared));
      if (rows < kInt4Rows) {
        std::memset(tail, 0, block_bytes);
        std::memcpy(tail, first, rows * row_bytes);
        first = tail;
      }
      const auto run = num_rows == 1   ? int4_panel<1, T>
                       : num_rows == 2 ? int4_panel<2, T>
                                       : int4_panel<kMaxSkinnyRows, T>;
      run(first, scale + row, bias ? bias + row : nullptr, n, k, rows, split, num_rows, ahead, out + row);
    }
}

}  // namespace antiphon::ANTIPHON_ISA
