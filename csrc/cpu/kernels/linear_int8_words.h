// int8 skinny linear with AVX512-VNNI and no tiles, for more rows of x than linear_int8_vnni.h is good at; included by
// linear_int8.cpp. The same integers, rounded alike.
//
// As in linear_int4_words.h a line of 16 rows of W is transposed, so that a vector holds the same four columns of all 16
// and meets those of a row of x in all lanes: no sum crosses lanes, which every two rows of x would pay for again. Two such
// blocks share what is loaded of x, and the words of the next line are made beside the products of this one.
#pragma once

#include "linear_int8_vnni.h"
#include "words_ahead.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int64_t kLine = IntDot::width;

// Rows of x: planes [k / 64][num_rows][2][64], and what every row's two sums begin with.
struct Int8Words {
  int8_t* planes;
  int32_t starts[kMaxSkinnyRows][2];
  float steps[kMaxSkinnyRows];
  int64_t num_rows;
};

// Row t. Sums begin with what takes back that W is met with an offset of 128.
template <class T>
inline void split_int8_words(const T* x, int64_t k, int64_t t, Int8Words& out) {
  __m512i sums[2] = {};
  out.steps[t] = quantum(x, k);
  const vf inverse = set1(inverse_of(out.steps[t]));
  for (int64_t i = 0; i < k; i += kLine) {
    int8_t* to = out.planes + (i * out.num_rows + t * kLine) * 2;
    split_line(x + i, inverse, to, to + kLine, sums);
  }
  for (int plane = 0; plane < 2; ++plane) out.starts[t][plane] = -IntDot::int8_offset * IntDot::total(sums[plane]);
}

// sums[t][plane][b] += the products of a line with M rows of x, whose planes these are. The first of the rows of x that meet a
// line make the next one's words, `ahead`, or null.
template <bool kFirst, int M, int kBlocks>
inline void int8_line(const __m512i (*words)[16], const WordsAhead<kBlocks>* ahead, const int8_t* x, LinesAhead& lines,
                      __m512i (*sums)[2][kBlocks]) {
  constexpr int kParts = WordsAhead<kBlocks>::kParts, kWords = 16 / kParts;
  const __m512i offset = _mm512_set1_epi8(-128);
  __m512i acc[M][2][kBlocks];
  for (int t = 0; t < M; ++t)
    for (int plane = 0; plane < 2; ++plane)
      for (int b = 0; b < kBlocks; ++b) acc[t][plane][b] = sums[t][plane][b];
#pragma GCC unroll 4
  for (int part = 0; part < kParts; ++part) {
    if (kFirst && ahead) ahead->make(part);
    for (int j = part * kWords; j < (part + 1) * kWords; ++j) {
      if (j % 2 == 0) lines.fetch();
      __m512i w[kBlocks];
      for (int b = 0; b < kBlocks; ++b) w[b] = _mm512_xor_si512(words[b][j], offset);
      for (int t = 0; t < M; ++t)
        for (int plane = 0; plane < 2; ++plane) {
          const __m512i columns = IntDot::word(x + (t * 2 + plane) * kLine + 4 * j);
          for (int b = 0; b < kBlocks; ++b) acc[t][plane][b] = IntDot::step(acc[t][plane][b], w[b], columns);
        }
    }
  }
  for (int t = 0; t < M; ++t)
    for (int plane = 0; plane < 2; ++plane)
      for (int b = 0; b < kBlocks; ++b) sums[t][plane][b] = acc[t][plane][b];
}

template <bool kFirst, int kBlocks>
inline void int8_line_of(int64_t rows, const __m512i (*words)[16], const WordsAhead<kBlocks>* ahead, const int8_t* x,
                         LinesAhead& lines, __m512i (*sums)[2][kBlocks]) {
  with_rows_of_x(rows, [&](auto m) { int8_line<kFirst, m>(words, ahead, x, lines, sums); });
}

// `rows` rows of W, at most kBlocks blocks, against all rows of x; scale, bias and out are those of the first row.
template <int kBlocks, class T>
inline void int8_word_blocks(const uint8_t* w, const float* scale, const T* bias, int64_t n, int64_t k, int64_t rows,
                             const Int8Words& x, LinesAhead lines, T* out) {
  __m512i sums[kMaxSkinnyRows][2][kBlocks];
  for (int64_t t = 0; t < x.num_rows; ++t)
    for (int plane = 0; plane < 2; ++plane)
      for (int b = 0; b < kBlocks; ++b) sums[t][plane][b] = _mm512_set1_epi32(x.starts[t][plane]);
  alignas(64) __m512i words[2][kBlocks][16];
  WordsAhead<kBlocks> next{w, k, words[0]};
  for (int part = 0; part < next.kParts; ++part) next.make(part);
  for (int64_t g = 0; g < k / kLine; ++g) {
    next.w += kLine;
    next.words = words[(g + 1) % 2];
    const WordsAhead<kBlocks>* ahead = (g + 1) * kLine < k ? &next : nullptr;
    for (int64_t t = 0; t < x.num_rows; t += kWordRowsOfX) {
      const auto run = t == 0 ? int8_line_of<true, kBlocks> : int8_line_of<false, kBlocks>;
      run(min64(kWordRowsOfX, x.num_rows - t), words[g % 2], ahead, x.planes + (g * x.num_rows + t) * 2 * kLine, lines,
          sums + t);
    }
  }
  for (int b = 0; b < kBlocks; ++b) {
    const int64_t first = b * kWordBlock, held = max64(0, min64(kWordBlock, rows - first));
    const vf of_rows = load_upto(scale + first, held), shift = bias ? load_upto(bias + first, held) : set1(0.0f);
    for (int64_t t = 0; t < x.num_rows; ++t) {
      const vf sum = IntDot::combine(sums[t][0][b], sums[t][1][b]);
      store_upto(out + t * n + first, add(mul(sum, mul(of_rows, set1(x.steps[t]))), shift), held);
    }
  }
}

template <class T>
inline void word_linear_int8(const T* x, int64_t x_stride, int64_t num_rows, const int8_t* w, const float* scale,
                             const T* bias, T* out, int64_t n, int64_t k, RowUnits units) {
  auto* memory = static_cast<int8_t*>(scratch((2 * num_rows + 2 * kWordBlock) * k));
  Int8Words split{memory, {}, {}, num_rows};
  for (int64_t t = 0; t < num_rows; ++t) split_int8_words(x + t * x_stride, k, t, split);
  for_word_blocks(units, reinterpret_cast<const uint8_t*>(w), k, k / kLine, num_rows,
                  reinterpret_cast<uint8_t*>(memory + 2 * num_rows * k),
                  [&](const uint8_t* first, int64_t row, int64_t rows, const LinesAhead& ahead) {
                    const auto run = rows > kWordBlock ? int8_word_blocks<2, T> : int8_word_blocks<1, T>;
                    run(first, scale + row, bias ? bias + row : nullptr, n, k, rows, split, ahead, out + row);
                  });
}

}  // namespace antiphon::ANTIPHON_ISA
