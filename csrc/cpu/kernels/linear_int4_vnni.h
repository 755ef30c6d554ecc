// int4 skinny linear by AVX512-VNNI where there are tiles, for the fewest rows of x; included by linear_int4_amx.h.
//
// 16 rows of W at a time: each row's group of 128 products is summed over lanes, 16 such vectors are transposed into one
// with a row per lane, and the exact integers are scaled and added in float32, group after group. linear_int4_amx.h does
// the same arithmetic on the same integers, so its results are equal to the bit.
#pragma once

#include "linear_int4_rows.h"
#include "row_runs.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int64_t kInt4Block = 16;  // rows of W

// Factors of 16 rows of W that lie `run` apart, in group g; scale is the first row's in group 0. Gathered as the upper
// halves of words, which begin before the array in group 0.
inline vf int4_factors(const bf16* scale, int64_t n, int64_t g, int64_t run, int64_t rows) {
  const bf16* p = scale + g * n;
  if (run == 1) return load_upto(p, rows);
  if (g == 0) {
    alignas(64) float lanes[16];
    for (int64_t r = 0; r < 16; ++r) lanes[r] = widen(p[r * run]);
    return load(lanes);
  }
  const __m512i lanes = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                           _mm512_set1_epi32(static_cast<int>(run)));
  const __m512i words = _mm512_i32gather_epi32(lanes, p - 1, 2);
  return _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(-65536)));
}

// sums[t], one lane per run of W from `first` on, of the runs' row `pass`, for M rows of x.
template <int M>
inline void int4_block(const uint8_t* first, int64_t run, int64_t pass, const bf16* scale, int64_t n, int64_t k,
                       int64_t rows, const Int4Row* x, vf (&sums)[M]) {
  const __m512i mask = _mm512_set1_epi8(15);
  const int64_t groups = k / kInt4Group, run_bytes = run * groups * kInt4Bytes;
  for (int t = 0; t < M; ++t) sums[t] = set1(0.0f);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t at = (pass * groups + g) * kInt4Bytes;
    __m512i products[M][16];
    prefetch_runs<kInt4Block, 384>(first, run_bytes, at);
    for (int r = 0; r < 16; ++r) {
      const __m512i raw = _mm512_loadu_si512(first + r * run_bytes + at);
      const __m512i w0 = _mm512_and_si512(raw, mask), w1 = _mm512_and_si512(_mm512_srli_epi16(raw, 4), mask);
      for (int t = 0; t < M; ++t) {
        const int8_t *qh = x[t].planes + g * 2 * kInt4Group, *ql = qh + kInt4Group;
        __m512i high = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w0, _mm512_load_si512(qh));
        __m512i low = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w0, _mm512_load_si512(ql));
        high = _mm512_dpbusd_epi32(high, w1, _mm512_load_si512(qh + 64));
        low = _mm512_dpbusd_epi32(low, w1, _mm512_load_si512(ql + 64));
        products[t][r] = _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
      }
    }
    const vf factor = int4_factors(scale, n, g, run, rows);
    for (int t = 0; t < M; ++t) {
      const __m512i exact = _mm512_sub_epi32(sum_of_each(products[t]), _mm512_set1_epi32(x[t].offsets[g]));
      sums[t] = fmadd(_mm512_cvtepi32_ps(exact), factor, sums[t]);
    }
  }
}

// Rows of W that lie `run` apart: out[r * run] = sums[r] * step + bias[r * run].
template <class T>
inline void int4_store(vf sums, float step, const T* bias, int64_t run, int64_t rows, T* out) {
  alignas(64) float lanes[16];
  store(lanes, mul(sums, set1(step)));
  for (int64_t r = 0; r < rows; ++r)
    store_n(out + r * run, set1(lanes[r] + (bias ? widen(bias[r * run]) : 0.0f)), 1);
}

// One pass over 16 runs of W; scale, bias and out are those of its first row.
template <class T, int M>
inline void int4_pass(const uint8_t* first, int64_t run, int64_t pass, const bf16* scale, const T* bias, int64_t n,
                      int64_t k, int64_t rows, const Int4Row* x, T* out) {
  vf sums[M];
  int4_block<M>(first, run, pass, scale, n, k, rows, x, sums);
  for (int t = 0; t < M; ++t) int4_store(sums[t], x[t].step, bias, run, rows, out + t * n);
}

template <class T>
inline void vnni_linear_int4(const T* x, int64_t x_stride, int64_t num_rows, const uint8_t* w, const bf16* scale,
                             const T* bias, T* out, int64_t n, int64_t k, RowUnits units) {
  const int64_t groups = k / kInt4Group, block_bytes = kInt4Block * groups * kInt4Bytes;
  auto* memory = static_cast<char*>(scratch(num_rows * (2 * k + 4 * groups) + block_bytes));
  auto* tail = reinterpret_cast<uint8_t*>(memory + num_rows * 2 * k);  // the last rows of W, zero-padded
  auto* offsets = reinterpret_cast<int32_t*>(tail + block_bytes);
  Int4Row columns[kMaxSkinnyRows];
  for (int64_t t = 0; t < num_rows; ++t) {
    columns[t] = {reinterpret_cast<int8_t*>(memory) + 2 * t * k, offsets + t * groups, 0.0f};
    split_int4_row(x + t * x_stride, k, columns[t]);
  }
  for (Range range; units.take(range);)
    for (int64_t row = range.begin; row < range.end;) {
      const int64_t left = range.end - row, run = rows_per_run(groups * kInt4Bytes, kInt4Block, left);
      const int64_t rows = min64(kInt4Block, left);
      const uint8_t* first = w + row * groups * kInt4Bytes;
      if (rows < kInt4Block) {
        std::memset(tail, 0, block_bytes);
        std::memcpy(tail, first, rows * groups * kInt4Bytes);
        first = tail;
      }
      for (int64_t pass = 0; pass < run; ++pass, ++row) {
        const T* shift = bias ? bias + row : nullptr;
        int64_t t = 0;
        for (; t + 4 <= num_rows; t += 4)
          int4_pass<T, 4>(first, run, pass, scale + row, shift, n, k, rows, columns + t, out + t * n + row);
        for (; t + 2 <= num_rows; t += 2)
          int4_pass<T, 2>(first, run, pass, scale + row, shift, n, k, rows, columns + t, out + t * n + row);
        if (t < num_rows)
          int4_pass<T, 1>(first, run, pass, scale + row, shift, n, k, rows, columns + t, out + t * n + row);
      }
      row += (kInt4Block - 1) * run;
    }
}

}  // namespace antiphon::ANTIPHON_ISA
