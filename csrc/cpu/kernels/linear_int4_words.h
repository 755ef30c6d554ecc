// int4 skinny linear with AVX512-VNNI and no tiles; included by linear_int4.cpp. The arithmetic of linear_int4_vnni.h.
//
// A group of 16 rows of W is transposed, so that a vector holds the same eight columns of all 16, and meets four columns of
// a row of x in all lanes. The sums of a group are then a row of W a lane, however many rows of x there are. Two such blocks
// share what is loaded of x, of which a cycle brings no more than it takes; the words of their next group are made beside
// the products of this one. W is read as one stream: the 32 rows after those at work are asked for evenly.
#pragma once

#include "linear_int4_vnni.h"
#include "weights_ahead.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int kInt4WordRows = 4;  // rows of x at a time: 16 sums with two blocks of W
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

// One group of kBlocks blocks of 16 rows of W, `stride` bytes apart, to be transposed in kParts parts: word j of all rows of
// block b in words[b][j].
template <int kBlocks>
struct WordsAhead {
  static constexpr int kParts = 2 * kBlocks;
  const uint8_t* w;
  int64_t stride;
  __m512i (*words)[16];

  void make(int part) const {
    const uint8_t* first = w + part / 2 * kInt4Block * stride;
    const auto row = [&](int r) { return _mm512_loadu_si512(first + r * stride); };
    part % 2 ? transpose_half<true>(row, words[part / 2]) : transpose_half<false>(row, words[part / 2]);
  }
};

// sums[t][b] += the products of one group with M rows of x, whose planes and offsets these are, scaled. `ahead`: words to
// make meanwhile, or null.
template <int M, int kBlocks>
inline void int4_group(const __m512i (*words)[16], const WordsAhead<kBlocks>* ahead, const int8_t* x,
                       const int32_t* offsets, const vf (&factors)[kBlocks], vf (*sums)[kBlocks]) {
  constexpr int kParts = WordsAhead<kBlocks>::kParts;
  constexpr int kChains = M * kBlocks > 4 ? 1 : M * kBlocks > 2 ? 2 : 4;  // a sum alone would wait for itself
  const __m512i mask = _mm512_set1_epi8(15);
  __m512i high[kChains][M][kBlocks], low[kChains][M][kBlocks];
  for (int i = 0; i < kChains; ++i)
    for (int t = 0; t < M; ++t)
      for (int b = 0; b < kBlocks; ++b) high[i][t][b] = low[i][t][b] = _mm512_setzero_si512();
  const auto products = [&](int chain, const __m512i(&w)[kBlocks], const int8_t* columns) {
    for (int t = 0; t < M; ++t, columns += kPlaneGroup) {
      const __m512i of_high = IntDot::word(columns), of_low = IntDot::word(columns + kInt4Group);
      for (int b = 0; b < kBlocks; ++b) {
        high[chain][t][b] = IntDot::step(high[chain][t][b], w[b], of_high);
        low[chain][t][b] = IntDot::step(low[chain][t][b], w[b], of_low);
      }
    }
  };
  for (int64_t j = 0; j < 16; j += 2) {
    if (ahead && j * kParts % 16 == 0) ahead->make(static_cast<int>(j * kParts / 16));
    for (int u = 0; u < 2; ++u) {
      __m512i w[kBlocks];
      for (int b = 0; b < kBlocks; ++b) w[b] = _mm512_and_si512(words[b][j + u], mask);
      products(2 * u % kChains, w, x + 4 * (j + u));
      for (int b = 0; b < kBlocks; ++b) w[b] = _mm512_and_si512(_mm512_srli_epi16(words[b][j + u], 4), mask);
      products((2 * u + 1) % kChains, w, x + 4 * (j + u) + 64);
    }
  }
  for (int t = 0; t < M; ++t)
    for (int b = 0; b < kBlocks; ++b) {
      for (int i = 1; i < kChains; ++i) {
        high[0][t][b] = _mm512_add_epi32(high[0][t][b], high[i][t][b]);
        low[0][t][b] = _mm512_add_epi32(low[0][t][b], low[i][t][b]);
      }
      const __m512i q = _mm512_add_epi32(_mm512_slli_epi32(high[0][t][b], 8), low[0][t][b]);
      const __m512i exact = _mm512_sub_epi32(q, _mm512_set1_epi32(offsets[t]));
      sums[t][b] = fmadd(_mm512_cvtepi32_ps(exact), factors[b], sums[t][b]);
    }
}

template <int kBlocks>
inline void int4_group_of(int64_t rows, const __m512i (*words)[16], const WordsAhead<kBlocks>* ahead, const int8_t* x,
                          const int32_t* offsets, const vf (&factors)[kBlocks], vf (*sums)[kBlocks]) {
  switch (rows) {
    case 1: return int4_group<1>(words, ahead, x, offsets, factors, sums);
    case 2: return int4_group<2>(words, ahead, x, offsets, factors, sums);
    case 3: return int4_group<3>(words, ahead, x, offsets, factors, sums);
    default: return int4_group<4>(words, ahead, x, offsets, factors, sums);
  }
}

// `rows` rows of W, at most kBlocks blocks, against all rows of x; scale, bias and out are those of the first row.
template <int kBlocks, class T>
inline void int4_word_blocks(const uint8_t* w, const bf16* scale, const T* bias, int64_t n, int64_t k, int64_t rows,
                             const Int4Words& x, LinesAhead lines, T* out) {
  const int64_t groups = k / kInt4Group;
  const auto held = [&](int b) { return max64(0, min64(kInt4Block, rows - b * kInt4Block)); };
  vf sums[kMaxSkinnyRows][kBlocks];
  for (auto& of_row : sums)
    for (vf& sum : of_row) sum = set1(0.0f);
  alignas(64) __m512i words[2][kBlocks][16];
  WordsAhead<kBlocks> next{w, groups * kInt4Bytes, words[0]};
  for (int part = 0; part < next.kParts; ++part) next.make(part);
  for (int64_t g = 0; g < groups; ++g) {
    next.w += kInt4Bytes;
    next.words = words[(g + 1) % 2];
    vf factors[kBlocks];
    for (int b = 0; b < kBlocks; ++b) factors[b] = load_upto(scale + g * n + b * kInt4Block, held(b));
    for (int64_t t = 0; t < x.num_rows; t += kInt4WordRows) {
      const int64_t at = g * x.num_rows + t;
      lines.fetch();
      int4_group_of<kBlocks>(min64(kInt4WordRows, x.num_rows - t), words[g % 2], t == 0 && g + 1 < groups ? &next : nullptr,
                             x.planes + at * kPlaneGroup, x.offsets + at, factors, sums + t);
    }
  }
  for (int b = 0; b < kBlocks; ++b) {
    const int64_t first = b * kInt4Block;
    const vf shift = bias ? load_upto(bias + first, held(b)) : set1(0.0f);
    for (int64_t t = 0; t < x.num_rows; ++t)
      store_upto(out + t * n + first, add(mul(sums[t][b], set1(x.steps[t])), shift), held(b));
  }
}

template <class T>
inline void word_linear_int4(const T* x, int64_t x_stride, int64_t num_rows, const uint8_t* w, const bf16* scale,
                             const T* bias, T* out, int64_t n, int64_t k, RowUnits units) {
  constexpr int64_t kRows = 2 * kInt4Block;  // of W at a time
  const int64_t groups = k / kInt4Group, row_bytes = groups * kInt4Bytes;
  const int64_t steps = groups * ((num_rows + kInt4WordRows - 1) / kInt4WordRows);
  auto* memory = static_cast<char*>(scratch(num_rows * (2 * k + 4 * groups) + kRows * row_bytes));
  auto* tail = reinterpret_cast<uint8_t*>(memory + num_rows * 2 * k);  // the last rows of W, zero-padded
  auto* offsets = reinterpret_cast<int32_t*>(tail + kRows * row_bytes);
  Int4Words split{reinterpret_cast<int8_t*>(memory), offsets, {}, num_rows};
  for (int64_t t = 0; t < num_rows; ++t) split_int4_words(x + t * x_stride, k, t, split);
  for (Range range; units.take(range);)
    for (int64_t row = range.begin; row < range.end; row += kRows) {
      const int64_t rows = min64(kRows, range.end - row);
      const uint8_t* first = w + row * row_bytes;
      const LinesAhead ahead(first + rows * row_bytes, rows * row_bytes, steps);
      if (rows % kInt4Block) {
        std::memset(tail, 0, kRows * row_bytes);
        std::memcpy(tail, first, rows * row_bytes);
        first = tail;
      }
      const auto run = rows > kInt4Block ? int4_word_blocks<2, T> : int4_word_blocks<1, T>;
      run(first, scale + row, bias ? bias + row : nullptr, n, k, rows, split, ahead, out + row);
    }
}

}  // namespace antiphon::ANTIPHON_ISA
