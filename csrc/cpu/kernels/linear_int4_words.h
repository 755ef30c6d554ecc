// int4 skinny linear with AVX512-VNNI and no tiles; included by linear_int4.cpp. The arithmetic of linear_int4_vnni.h.
//
// 16 rows of W at a time: a group of theirs is transposed, so that a vector holds the same eight columns of all 16, and
// meets four columns of a row of x in all lanes. The sums of a group are then a row of W a lane, however many rows of x
// there are. W is read as one stream: the 16 rows after those at work are asked for evenly.
#pragma once

#include "linear_int4_vnni.h"
#include "weights_ahead.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int kInt4WordRows = 8;  // rows of x at a time: 16 sums
constexpr int64_t kPlaneGroup = 2 * kInt4Group;  // bytes of a row's group in two planes

// Rows of x: planes [k / 128][num_rows][2][128], and [k / 128][num_rows] 8 times the sum of its q, for the weights'
// offset.
struct Int4Words {
  int8_t* planes;
  int32_t* offsets;
  float steps[kMaxSkinnyRows];
  int64_t num_rows;
};

template <class T>
inline void split_int4_words(const T* x, int64_t k, int64_t t, Int4Words& out) {
  const __m512i ones = _mm512_set1_epi8(1);
  out.steps[t] = split_row(x, k, [&](int64_t i, const int8_t* high, const int8_t* low, int64_t) {  // 64 at a time
    const int64_t at = i / kInt4Group * out.num_rows + t;
    const __m512i h = _mm512_load_si512(high), l = _mm512_load_si512(low);
    int8_t* to = out.planes + at * kPlaneGroup + i % kInt4Group;
    _mm512_store_si512(to, h);
    _mm512_store_si512(to + kInt4Group, l);
    const __m512i sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, h);
    const __m512i q = _mm512_dpbusd_epi32(_mm512_slli_epi32(sums, 8), ones, l);
    out.offsets[at] = 8 * _mm512_reduce_add_epi32(q) + (i % kInt4Group ? out.offsets[at] : 0);
  });
}

// A group of 16 rows of W, `stride` bytes apart: word j of all rows in words[j].
inline void int4_words(const uint8_t* w, int64_t stride, __m512i (&words)[16]) {
  for (int r = 0; r < 16; ++r) words[r] = _mm512_loadu_si512(w + r * stride);
  transpose_words(words);
}

// sums[t] += the products of one group with M rows of x, whose planes and offsets these are, scaled.
template <int M>
inline void int4_group(const __m512i (&words)[16], const int8_t* x, const int32_t* offsets, vf factor, vf* sums) {
  constexpr int kChains = M > 4 ? 1 : M > 2 ? 2 : 4;  // a sum alone would wait for itself
  const __m512i mask = _mm512_set1_epi8(15);
  __m512i high[kChains][M], low[kChains][M];
  for (int i = 0; i < kChains; ++i)
    for (int t = 0; t < M; ++t) high[i][t] = low[i][t] = _mm512_setzero_si512();
  for (int64_t j = 0; j < 16; j += 2)
    for (int u = 0; u < 2; ++u) {
      const __m512i first = _mm512_and_si512(words[j + u], mask);
      const __m512i second = _mm512_and_si512(_mm512_srli_epi16(words[j + u], 4), mask);
      const int8_t* columns = x + 4 * (j + u);
      const int one = 2 * u % kChains, other = (2 * u + 1) % kChains;
      for (int t = 0; t < M; ++t) {
        const int8_t *of_high = columns + t * kPlaneGroup, *of_low = of_high + kInt4Group;
        high[one][t] = IntDot::step_word(high[one][t], first, of_high);
        low[one][t] = IntDot::step_word(low[one][t], first, of_low);
        high[other][t] = IntDot::step_word(high[other][t], second, of_high + 64);
        low[other][t] = IntDot::step_word(low[other][t], second, of_low + 64);
      }
    }
  for (int t = 0; t < M; ++t) {
    for (int i = 1; i < kChains; ++i) {
      high[0][t] = _mm512_add_epi32(high[0][t], high[i][t]);
      low[0][t] = _mm512_add_epi32(low[0][t], low[i][t]);
    }
    const __m512i q = _mm512_add_epi32(_mm512_slli_epi32(high[0][t], 8), low[0][t]);
    const __m512i exact = _mm512_sub_epi32(q, _mm512_set1_epi32(offsets[t]));
    sums[t] = fmadd(_mm512_cvtepi32_ps(exact), factor, sums[t]);
  }
}

inline void int4_group_of(int64_t rows, const __m512i (&words)[16], const int8_t* x, const int32_t* offsets, vf factor,
                          vf* sums) {
  switch (rows) {
    case 1: return int4_group<1>(words, x, offsets, factor, sums);
    case 2: return int4_group<2>(words, x, offsets, factor, sums);
    case 3: return int4_group<3>(words, x, offsets, factor, sums);
    case 4: return int4_group<4>(words, x, offsets, factor, sums);
    case 5: return int4_group<5>(words, x, offsets, factor, sums);
    case 6: return int4_group<6>(words, x, offsets, factor, sums);
    case 7: return int4_group<7>(words, x, offsets, factor, sums);
    default: return int4_group<8>(words, x, offsets, factor, sums);
  }
}

// Up to 16 rows of W against all rows of x; scale, bias and out are those of the first row.
template <class T>
inline void int4_word_block(const uint8_t* w, const bf16* scale, const T* bias, int64_t n, int64_t k, int64_t rows,
                            const Int4Words& x, LinesAhead ahead, T* out) {
  const int64_t groups = k / kInt4Group;
  vf sums[kMaxSkinnyRows];
  for (vf& sum : sums) sum = set1(0.0f);
  for (int64_t g = 0; g < groups; ++g) {
    alignas(64) __m512i words[16];
    int4_words(w + g * kInt4Bytes, groups * kInt4Bytes, words);
    const vf factor = load_upto(scale + g * n, rows);
    for (int64_t t = 0; t < x.num_rows; t += kInt4WordRows) {
      const int64_t at = g * x.num_rows + t;
      ahead.fetch();
      int4_group_of(min64(kInt4WordRows, x.num_rows - t), words, x.planes + at * kPlaneGroup, x.offsets + at, factor,
                    sums + t);
    }
  }
  const vf shift = bias ? load_upto(bias, rows) : set1(0.0f);
  for (int64_t t = 0; t < x.num_rows; ++t) store_upto(out + t * n, add(mul(sums[t], set1(x.steps[t])), shift), rows);
}

template <class T>
inline void word_linear_int4(const T* x, int64_t x_stride, int64_t num_rows, const uint8_t* w, const bf16* scale,
                             const T* bias, T* out, int64_t n, int64_t k, RowUnits units) {
  const int64_t groups = k / kInt4Group, row_bytes = groups * kInt4Bytes, block_bytes = kInt4Block * row_bytes;
  const int64_t steps = groups * ((num_rows + kInt4WordRows - 1) / kInt4WordRows);
  auto* memory = static_cast<char*>(scratch(num_rows * (2 * k + 4 * groups) + block_bytes));
  auto* tail = reinterpret_cast<uint8_t*>(memory + num_rows * 2 * k);  // the last rows of W, zero-padded
  auto* offsets = reinterpret_cast<int32_t*>(tail + block_bytes);
  Int4Words split{reinterpret_cast<int8_t*>(memory), offsets, {}, num_rows};
  for (int64_t t = 0; t < num_rows; ++t) split_int4_words(x + t * x_stride, k, t, split);
  for (Range range; units.take(range);)
    for (int64_t row = range.begin; row < range.end; row += kInt4Block) {
      const int64_t rows = min64(kInt4Block, range.end - row);
      const uint8_t* first = w + row * row_bytes;
      const LinesAhead ahead(first + rows * row_bytes, rows * row_bytes, steps);
      if (rows < kInt4Block) {
        std::memset(tail, 0, block_bytes);
        std::memcpy(tail, first, rows * row_bytes);
        first = tail;
      }
      int4_word_block(first, scale + row, bias ? bias + row : nullptr, n, k, rows, split, ahead, out + row);
    }
}

}  // namespace antiphon::ANTIPHON_ISA
