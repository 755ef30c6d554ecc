// int4 skinny linear with AVX512-VNNI and no tiles, for more rows of x than linear_int4_rows.h is good at; included by
// linear_int4.cpp. The same integers, rounded alike.
//
// A group of 16 rows of W is transposed, so that a vector holds the same eight columns of all 16, and meets four columns of
// a row of x in all lanes. The sums of a group are then a row of W a lane, however many rows of x there are. Two such blocks
// share what is loaded of x, of which a cycle brings no more than it takes; the words of their next group are made beside
// the products of this one. W is read as one stream: the 32 rows after those at work are asked for evenly.
//
// Products in pairs (Winograd, "A new algorithm for inner product", 1968): for two columns of x, a and b, and theirs of W,
// v and w,
//     (a + w) (b + v) = a v + b w + a b + v w,
// one product and two additions in place of two products. The sum of a b belongs to a row of x, that of v w to a row of W.
// Products alone are what bounds many rows of x: the low planes of all but the first four go in pairs where processors add
// beside multiplying, which keeps all ports at work. The integers are the same.
#pragma once

#include "int_dot.h"
#include "kernels.h"
#include "row_units.h"
#include "weights_ahead.h"
#include "words_ahead.h"

namespace antiphon::ANTIPHON_ISA {

constexpr bool kPairs = ANTIPHON_ADDS_BESIDE_PRODUCTS;

constexpr int64_t kHalfGroup = kInt4Group / 2;   // columns in the same half of W's bytes
constexpr int64_t kPlaneGroup = 2 * kInt4Group;  // bytes of a row's group in two planes
// What a and b are stored with, so that a + w is a byte without sign and b + v one with: W is held as 0 to 15.
constexpr int8_t kFirstShift = 120, kSecondShift = -8;

// Rows of x that meet a group one after the other: all there are at once, or those that make the next group's words,
// and others after them.
enum class Pass { only, first, later };

// Rows of x: planes [k / 128][num_rows][2][128], and what every group's two sums begin with, [k / 128][num_rows][2].
struct Int4Words {
  int8_t* planes;
  int32_t* starts;
  float steps[kMaxSkinnyRows];
  int64_t num_rows;
};

// The sums of both vectors' lanes, times -8 or (kLowOnce) of b's times -1.
template <bool kLowOnce>
inline void store_negative_sums(__m512i a, __m512i b, int32_t* out) {
  const __m512i both = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64(both, 1));
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  const __m128i scaled = _mm_sllv_epi32(two, _mm_setr_epi32(3, kLowOnce ? 0 : 3, 0, 0));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_sub_epi32(_mm_setzero_si128(), scaled));
}

// Row t. Sums begin with what takes back that W is held with an offset of 8; in pairs, with the sum of a b, and of b
// times the difference of the shifts.
template <bool kPaired, class T>
inline void split_int4_words(const T* x, int64_t k, int64_t t, Int4Words& out) {
  const __m512i ones = _mm512_set1_epi8(1), zero = _mm512_setzero_si512();
  out.steps[t] = quantum(x, k);
  const vf inverse = set1(inverse_of(out.steps[t]));
  for (int64_t g = 0; g < k / kInt4Group; ++g) {
    const int64_t at = g * out.num_rows + t;
    int8_t* to = out.planes + at * kPlaneGroup;
    __m512i high[2], low[2];
    for (int i = 0; i < 2; ++i) {
      split_columns<kOddBase>(x + g * kInt4Group + i * kHalfGroup, inverse, &high[i], &low[i]);
      const __m512i shift = _mm512_set1_epi8(i ? kSecondShift : kFirstShift);
      _mm512_store_si512(to + i * kHalfGroup, in_order(high[i]));
      _mm512_store_si512(to + kInt4Group + i * kHalfGroup, in_order(kPaired ? _mm512_add_epi8(low[i], shift) : low[i]));
    }
    const __m512i of_high = IntDot::step(IntDot::step(zero, ones, high[0]), ones, high[1]);
    const __m512i first = _mm512_xor_si512(low[0], _mm512_set1_epi8(-128));  // a + 128
    const __m512i of_low = kPaired ? IntDot::step(zero, first, low[1])
                                   : IntDot::step(IntDot::step(zero, ones, low[0]), ones, low[1]);
    store_negative_sums<kPaired>(of_high, of_low, out.starts + 2 * at);
  }
}

// What a pass over one group reads beside x.
template <int kBlocks>
struct Int4Group {
  const __m512i (*words)[16];
  const WordsAhead<kBlocks>* ahead;  // words to make meanwhile, or null; by the first pass
  vf factors[kBlocks];
  __m512i of_rows[kBlocks];  // sums of v w, shifted as in pairs; made by the first pass
};

// sums[t][b] += the products of one group with M rows of x, whose planes and starts these are, scaled.
template <Pass kPass, int M, int kBlocks>
inline void int4_group(Int4Group<kBlocks>& group, const int8_t* x, const int32_t* starts, LinesAhead& lines,
                       vf (*sums)[kBlocks]) {
  constexpr int kParts = WordsAhead<kBlocks>::kParts, kWords = 16 / kParts;
  constexpr int kChains = M * kBlocks > 4 ? 1 : M * kBlocks > 2 ? 2 : 4;  // a sum alone would wait for itself
  constexpr bool kPaired = kPairs && kPass == Pass::later, kSumsOfRows = kPairs && kPass == Pass::first;
  const __m512i mask = _mm512_set1_epi8(15);
  __m512i high[kChains][M][kBlocks], low[kChains][M][kBlocks], of_rows[kBlocks];
  for (int i = 0; i < kChains; ++i)
    for (int t = 0; t < M; ++t)
      for (int b = 0; b < kBlocks; ++b) {
        high[i][t][b] = i ? _mm512_setzero_si512() : _mm512_set1_epi32(starts[2 * t]);
        low[i][t][b] = i ? _mm512_setzero_si512() : _mm512_set1_epi32(starts[2 * t + 1]);
        if (kPaired && i == 0) low[i][t][b] = _mm512_sub_epi32(low[i][t][b], group.of_rows[b]);
      }
  for (int b = 0; b < kBlocks; ++b) of_rows[b] = _mm512_setzero_si512();

  const auto products = [&](int j, int chain, int other) {
    __m512i v[kBlocks], w[kBlocks];
    for (int b = 0; b < kBlocks; ++b) v[b] = _mm512_and_si512(group.words[b][j], mask);
    for (int b = 0; b < kBlocks; ++b) w[b] = _mm512_and_si512(_mm512_srli_epi16(group.words[b][j], 4), mask);
    if constexpr (kSumsOfRows)
      for (int b = 0; b < kBlocks; ++b)
        of_rows[b] = IntDot::step(of_rows[b], _mm512_add_epi8(w[b], _mm512_set1_epi8(kFirstShift)),
                                  _mm512_add_epi8(v[b], _mm512_set1_epi8(kSecondShift)));
    const int8_t* columns = x + 4 * j;
    for (int t = 0; t < M; ++t, columns += kPlaneGroup) {
      const __m512i high_a = IntDot::word(columns), high_b = IntDot::word(columns + kHalfGroup);
      for (int b = 0; b < kBlocks; ++b) high[chain][t][b] = IntDot::step(high[chain][t][b], v[b], high_a);
      const __m512i low_a = IntDot::word(columns + kInt4Group), low_b = IntDot::word(columns + kInt4Group + kHalfGroup);
      if constexpr (kPaired) {
        for (int b = 0; b < kBlocks; ++b)
          low[chain][t][b] = IntDot::step(low[chain][t][b], _mm512_add_epi8(low_a, w[b]), _mm512_add_epi8(low_b, v[b]));
      } else {
        for (int b = 0; b < kBlocks; ++b) low[chain][t][b] = IntDot::step(low[chain][t][b], v[b], low_a);
        for (int b = 0; b < kBlocks; ++b) low[other][t][b] = IntDot::step(low[other][t][b], w[b], low_b);
      }
      for (int b = 0; b < kBlocks; ++b) high[other][t][b] = IntDot::step(high[other][t][b], w[b], high_b);
    }
  };
#pragma GCC unroll 4
  for (int part = 0; part < kParts; ++part) {
    if (kPass != Pass::later && group.ahead) group.ahead->make(part);
    for (int j = part * kWords; j < (part + 1) * kWords; j += 2) {
      lines.fetch();
      products(j, 0, kChains > 1);
      products(j + 1, kChains > 2 ? 2 : 0, kChains > 2 ? 3 : kChains > 1);
    }
  }
  if (kSumsOfRows)
    for (int b = 0; b < kBlocks; ++b) group.of_rows[b] = of_rows[b];
  for (int t = 0; t < M; ++t)
    for (int b = 0; b < kBlocks; ++b) {
      for (int i = 1; i < kChains; ++i) {
        high[0][t][b] = _mm512_add_epi32(high[0][t][b], high[i][t][b]);
        low[0][t][b] = _mm512_add_epi32(low[0][t][b], low[i][t][b]);
      }
      const vf upper = _mm512_cvtepi32_ps(high[0][t][b]), lower = _mm512_cvtepi32_ps(low[0][t][b]);
      sums[t][b] = fmadd(fmadd(upper, set1(kOddBase), lower), group.factors[b], sums[t][b]);  // rounded as the integer
    }
}

template <Pass kPass, int kBlocks>
inline void int4_group_of(int64_t rows, Int4Group<kBlocks>& group, const int8_t* x, const int32_t* starts,
                          LinesAhead& lines, vf (*sums)[kBlocks]) {
  with_rows_of_x(rows, [&](auto m) { int4_group<kPass, m>(group, x, starts, lines, sums); });
}

// `rows` rows of W, at most kBlocks blocks, against all rows of x; scale, bias and out are those of the first row.
template <int kBlocks, class T>
inline void int4_word_blocks(const uint8_t* w, const bf16* scale, const T* bias, int64_t n, int64_t k, int64_t rows,
                             const Int4Words& x, LinesAhead lines, T* out) {
  const int64_t groups = k / kInt4Group;
  const auto held = [&](int b) { return max64(0, min64(kWordBlock, rows - b * kWordBlock)); };
  vf sums[kMaxSkinnyRows][kBlocks];
  for (auto& of_row : sums)
    for (vf& sum : of_row) sum = set1(0.0f);
  alignas(64) __m512i words[2][kBlocks][16];
  WordsAhead<kBlocks> next{w, groups * kInt4Bytes, words[0]};
  for (int part = 0; part < next.kParts; ++part) next.make(part);
  for (int64_t g = 0; g < groups; ++g) {
    next.w += kInt4Bytes;
    next.words = words[(g + 1) % 2];
    Int4Group<kBlocks> group{words[g % 2], g + 1 < groups ? &next : nullptr, {}, {}};
    prefetch(scale + g * n + kBlocks * kWordBlock);  // of the next rows: a group's scales are far from the last one's
    for (int b = 0; b < kBlocks; ++b) group.factors[b] = load_upto(scale + g * n + b * kWordBlock, held(b));
    for (int64_t t = 0; t < x.num_rows; t += kWordRowsOfX) {
      const int64_t at = g * x.num_rows + t, left = x.num_rows - t;
      const auto run = t > 0                 ? int4_group_of<Pass::later, kBlocks>
                       : left > kWordRowsOfX ? int4_group_of<Pass::first, kBlocks>
                                             : int4_group_of<Pass::only, kBlocks>;
      run(min64(kWordRowsOfX, left), group, x.planes + at * kPlaneGroup, x.starts + 2 * at, lines, sums + t);
    }
  }
  for (int b = 0; b < kBlocks; ++b) {
    const int64_t first = b * kWordBlock;
    const vf shift = bias ? load_upto(bias + first, held(b)) : set1(0.0f);
    for (int64_t t = 0; t < x.num_rows; ++t)
      store_upto(out + t * n + first, add(mul(sums[t][b], set1(x.steps[t])), shift), held(b));
  }
}

template <class T>
inline void word_linear_int4(const T* x, int64_t x_stride, int64_t num_rows, const uint8_t* w, const bf16* scale,
                             const T* bias, T* out, int64_t n, int64_t k, RowUnits units) {
  const int64_t groups = k / kInt4Group, row_bytes = groups * kInt4Bytes;
  auto* memory = static_cast<char*>(scratch(num_rows * (2 * k + 8 * groups) + 2 * kWordBlock * row_bytes));
  auto* tail = reinterpret_cast<uint8_t*>(memory + num_rows * 2 * k);
  auto* starts = reinterpret_cast<int32_t*>(tail + 2 * kWordBlock * row_bytes);
  Int4Words split{reinterpret_cast<int8_t*>(memory), starts, {}, num_rows};
  for (int64_t t = 0; t < num_rows; ++t) {
    const auto run = kPairs && t >= kWordRowsOfX ? split_int4_words<true, T> : split_int4_words<false, T>;
    run(x + t * x_stride, k, t, split);
  }
  for_word_blocks(units, w, row_bytes, groups, num_rows, tail,
                  [&](const uint8_t* first, int64_t row, int64_t rows, const LinesAhead& ahead) {
                    const auto run = rows > kWordBlock ? int4_word_blocks<2, T> : int4_word_blocks<1, T>;
                    run(first, scale + row, bias ? bias + row : nullptr, n, k, rows, split, ahead, out + row);
                  });
}

}  // namespace antiphon::ANTIPHON_ISA
