// Rows of integer weights side by side in a vector, a word of four bytes each, made of lines of memory beside other work.
#pragma once

#include "simd.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int64_t kWordBlock = 16;  // rows

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
