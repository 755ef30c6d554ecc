// Rows of integer weights side by side in a vector, a word of four bytes each, made of lines of memory beside other work.
#pragma once

#include <type_traits>

#include "row_units.h"
#include "simd.h"
#include "weights_ahead.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int64_t kWordBlock = 16;  // rows
constexpr int kWordRowsOfX = 4;     // at a time: 16 sums with two blocks and two planes
constexpr int kWordSteps = 8;       // in which rows of x meet a line of each row, two words in each

// f(how many, as a constant) for up to kWordRowsOfX rows of x.
template <class F>
inline void with_rows_of_x(int64_t rows, const F& f) {
  switch (rows) {
    case 1: return f(std::integral_constant<int, 1>{});
    case 2: return f(std::integral_constant<int, 2>{});
    case 3: return f(std::integral_constant<int, 3>{});
    default: return f(std::integral_constant<int, kWordRowsOfX>{});
  }
}

// f(W at `row`, row, rows, lines to ask for meanwhile) for up to two blocks of rows of W at a time. What f gets ends with a
// whole block: rows that fill none are copied to `tail`, of two blocks, and zeros behind them. `lines` of a row of W meet
// `rows_of_x`.
template <class F>
inline void for_word_blocks(RowUnits units, const uint8_t* w, int64_t row_bytes, int64_t lines, int64_t rows_of_x,
                            uint8_t* tail, const F& f) {
  constexpr int64_t kRows = 2 * kWordBlock;
  const int64_t fetches = kWordSteps * lines * ((rows_of_x + kWordRowsOfX - 1) / kWordRowsOfX);
  for (Range range; units.take(range);)
    for (int64_t row = range.begin; row < range.end; row += kRows) {
      const int64_t rows = min64(kRows, range.end - row);
      const uint8_t* first = w + row * row_bytes;
      const LinesAhead ahead(first + rows * row_bytes, rows * row_bytes, fetches);
      if (rows % kWordBlock) {
        std::memset(tail, 0, kRows * row_bytes);
        std::memcpy(tail, first, rows * row_bytes);
        first = tail;
      }
      f(first, row, rows, ahead);
    }
}

// A line, 64 bytes, of each row of kBlocks blocks, rows `stride` bytes apart, to be transposed in kParts parts: word j of all
// rows of block b in words[b][j].
template <int kBlocks>
struct WordsAhead {
  static constexpr int kParts = 2 * kBlocks;
  const uint8_t* w;
  int64_t stride;
  __m512i (*words)[16];

  void make(int part) const {
    const uint8_t* first = w + part / 2 * kWordBlock * stride;
    const auto row = [&](int r) { return _mm512_loadu_si512(first + r * stride); };
    part % 2 ? transpose_half<true>(row, words[part / 2]) : transpose_half<false>(row, words[part / 2]);
  }
};

}  // namespace antiphon::ANTIPHON_ISA
