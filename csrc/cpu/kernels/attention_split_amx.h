// float32 on the bfloat16 tiles of attention_amx.h: every value is the sum of three bfloat16 pieces,
//
//   a = bf16(x), b = bf16(x - a), c = x - a - b,   |b| <= 2^-8 |x|, |c| <= 2^-17 |x|
//
// exactly, for each takes 8 of the 24 bits. Of the nine products of pieces the six largest are summed, in float32;
// those left out, b c', c b' and c c', are at most 2^-24 |x y| together, the rounding of one product.
//
// Products of pieces are exact. A tile instruction adds 32 of them, 16 even and 16 odd ones in order, and then their
// sums to the accumulator: so a value has six roundings at full size for 32 terms and 17 at the size of the 32, no more
// than 32 fused multiply-adds have. The product a a', as large as all, comes last. Order and grouping are the same for
// every row, whatever shares its tiles. Scores of a last depth of at most 16 dims hold two pieces in a tile and take
// three instructions in place of six.
//
// What is below 2^-126, a piece or a product, is zero to a tile. Products that overflow may do so with either sign, as
// b has another sign than a: a score that is infinite in float32 may be not a number here, which soften takes for the
// lowest. Values within 2^-9 of the largest float32 round to infinity.
#pragma once

#include "attention_amx.h"

namespace antiphon::ANTIPHON_ISA {

struct Split {
  using Element = float;
  static constexpr int64_t kPieces = 3, kTile = Whole::kTile;

  // Dims i and i + 16 meet in a word. A last depth of up to 16 has a and a, b and a, c and b there instead.
  static void key(const float* row, int64_t left, __m512i* words) {
    if (left > 16) return pairs(load(row), load_upto(row + 16, min64(16, left - 16)), words);
    const Pieces x = pieces(load_upto(row, left));
    words[0] = word(x.a, x.a);
    words[1] = word(x.b, x.a);
    words[2] = word(x.c, x.b);
  }

  // The same, except that a last depth has c and a for a and a, a and b for both others.
  static void query(const float* row, int64_t left, __m512i* words) {
    if (left > 16) return pairs(load(row), load_upto(row + 16, min64(16, left - 16)), words);
    const Pieces x = pieces(load_upto(row, left));
    words[0] = word(x.c, x.a);
    words[1] = word(x.a, x.b);
  }

  static void values(const float* a, const float* b, int64_t left, __m512i* words) {
    const int64_t n = min64(16, left);
    pairs(load_upto(a, n), load_upto(b, n), words);
  }

  // Below kSplit a weight is its first piece alone: beside the highest, 1, the rest is nothing, and as a denormal it
  // would take the processor a hundred cycles.
  static void weights(vf a, vf b, __m512i* words) {
    const auto split = [](vf w) { return _mm512_cmp_ps_mask(w, set1(kSplit), _CMP_GE_OQ); };
    pairs(a, b, words, split(a), split(b));
  }

  static constexpr int64_t kProducts = 6, kFewProducts = 3;
  static int64_t products(int64_t left) { return left > 16 ? kProducts : kFewProducts; }

  // Neighbours in this order share their rows or their columns, which saves a third of the loads.
  template <int kRows, int kColumns>
  static void product(int64_t which, int64_t products, const bf16* rows, int64_t row_step, const bf16* columns,
                      int64_t column_step) {
    if (products == kFewProducts)
      return few_product<kRows, kColumns>(which, rows, row_step, columns, column_step);
    switch (which) {
      case 0:  // c a'
        load_rows<kRows>(rows + 2 * kTile, row_step);
        load_columns<kColumns>(columns, column_step);
        break;
      case 1:  // b a'
        load_rows<kRows>(rows + kTile, row_step);
        break;
      case 2:  // b b'
        load_columns<kColumns>(columns + kTile, column_step);
        break;
      case 3:  // a b'
        load_rows<kRows>(rows, row_step);
        break;
      case 4:  // a c'
        load_columns<kColumns>(columns + 2 * kTile, column_step);
        break;
      default:  // a a'
        load_columns<kColumns>(columns, column_step);
    }
    multiply_tiles<kRows, kColumns>();
  }

 private:
  template <int kRows, int kColumns>
  static void few_product(int64_t which, const bf16* rows, int64_t row_step, const bf16* columns,
                          int64_t column_step) {
    load_rows<kRows>(rows + (2 - which) * kTile, row_step);
    if (which == 0) load_columns<kColumns>(columns + kTile, column_step);  // c a' + b b', then b a' + a b'
    if (which == 2) load_columns<kColumns>(columns, column_step);          // a c' + a a'
    multiply_tiles<kRows, kColumns>();
  }

  static constexpr float kSplit = 0x1p-103f;  // from here on the last of the 24 bits is no denormal

  struct Pieces {
    vf a, b, c;  // bfloat16 in the upper half of a lane; below c there is nothing
  };

  static __m512i upper(__m512i x) { return _mm512_and_si512(x, _mm512_set1_epi32(-65536)); }
  // To nearest, ties away from zero.
  static vf rounded(vf x) {
    return _mm512_castsi512_ps(upper(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000))));
  }
  static Pieces pieces(vf x, __mmask16 split = 0xffff) {
    const vf a = rounded(x), rest = _mm512_maskz_sub_ps(split, x, a), b = rounded(rest);
    return {a, b, sub(rest, b)};
  }
  // The upper halves of lanes, those of `low` first.
  static __m512i word(vf low, vf high) {
    const __m512i down = _mm512_srli_epi32(_mm512_castps_si512(low), 16);
    return _mm512_mask_blend_epi16(0xaaaaaaaa, down, _mm512_castps_si512(high));
  }
  static void pairs(vf low, vf high, __m512i* words, __mmask16 split_low = 0xffff, __mmask16 split_high = 0xffff) {
    const Pieces x = pieces(low, split_low), y = pieces(high, split_high);
    words[0] = word(x.a, y.a);
    words[1] = word(x.b, y.b);
    words[2] = word(x.c, y.c);
  }
};

}  // namespace antiphon::ANTIPHON_ISA
