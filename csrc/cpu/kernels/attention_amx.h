// The block of attention.h on AMX tiles; included by it where the instruction set has them.
//
// Scores: 16 keys, as they lie in memory, times 16 packed queries give a tile [key][row]. Sums: 16 dims of the
// transposed values times the weights, whose pairs of keys lie side by side, give a tile [dim][row]. Both take two by
// two tiles.
//
// Tiles multiply bfloat16. A Form says how values of an element type are written in it, as kPieces tiles that lie one
// behind the other, and which of them are multiplied: Whole is bfloat16 itself, Split (attention_split_amx.h) float32.
#pragma once

#include "tile_products.h"

namespace antiphon::ANTIPHON_ISA {

struct Whole {
  using Element = bf16;
  static constexpr int64_t kPieces = 1, kTile = 512;  // bfloat16 of a tile

  // 32 dims of a row of which `left` are left.
  static void key(const bf16* row, int64_t left, __m512i* words) {
    *words = left >= 32 ? Dot<bf16>::load(row) : Dot<bf16>::load_n(row, left);
  }
  static void query(const bf16* row, int64_t left, __m512i* words) { key(row, left, words); }

  // 16 dims of the values of two keys, side by side.
  static void values(const bf16* a, const bf16* b, int64_t left, __m512i* words) {
    const __m512i pair = _mm512_castsi256_si512(dims(a, left));
    *words = interleave(_mm512_inserti64x4(pair, dims(b, left), 1));
  }

  // Weights of two keys, side by side.
  static void weights(vf a, vf b, __m512i* words) { *words = interleave(round_pair(a, b)); }

  // Of a depth, and of one with `left` dims.
  static constexpr int64_t kProducts = 1;
  static constexpr int64_t products(int64_t) { return kProducts; }

  // One of a depth's `products`.
  template <int kRows, int kColumns>
  static void product(int64_t, int64_t, const bf16* rows, int64_t row_step, const bf16* columns, int64_t column_step) {
    load_rows<kRows>(rows, row_step);
    load_columns<kColumns>(columns, column_step);
    multiply_tiles<kRows, kColumns>();
  }

 private:
  static __m256i dims(const bf16* row, int64_t left) {
    if (left >= 16) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row));
    saw(row, 2 * left);
    return _mm256_maskz_loadu_epi16(first(left), row);
  }
};

template <class Form>
class TileBlock {
 public:
  using Stored = bf16;
  static constexpr int64_t kPieces = Form::kPieces;

  TileBlock(int64_t head_dim, int64_t groups) : dim_(head_dim), depths_(depths(head_dim)), dims_(dims(head_dim)) {
    const int64_t queries = groups * depths_ * kForm, state = groups * dims_ * kSums, scores = kTurns * kScores;
    sums_ = static_cast<float*>(
        scratch((state + scores) * 4 + (queries + scores * kPieces) * 2 + groups * sizeof(Lanes)));
    scores_ = sums_ + state;
    queries_ = reinterpret_cast<bf16*>(scores_ + scores);
    weights_ = queries_ + queries;
    lanes_ = reinterpret_cast<Lanes*>(weights_ + scores * kPieces);
    std::memset(sums_, 0, state * 4);
  }
  static int64_t padded(int64_t head_dim) { return round_up(head_dim, 32); }
  static void open() { configure_tiles(16); }
  static void close() { _tile_release(); }
  Lanes& lanes(int64_t group) { return lanes_[group]; }

  // [depth][piece][16 pairs of dims][16 rows][2]
  template <class Problem>
  void load_queries(const Problem& p, int64_t row, int64_t rows, int64_t group) {
    for (int64_t depth = 0; depth < depths_; ++depth)
      pack_columns(queries_ + (group * depths_ + depth) * kForm, [&](int64_t i, __m512i* words) {
        if (i < rows) Form::query(p.query(row + i) + 32 * depth, dim_ - 32 * depth, words);
      });
  }

  // Keys [first, first + n) to rows [at, at + 32) of a block, zero past n: keys are
  // [16 keys][depth][piece][key][32 dims], values [32 keys][16 dims][piece][dim][32 keys].
  template <class Problem>
  static void pack(const Problem& p, int64_t first, int64_t n, bf16* block, int64_t at) {
    const int64_t dim = p.head_dim, depths = TileBlock::depths(dim), dims = TileBlock::dims(dim);
    bf16* keys = block + at / 16 * depths * kForm;
    for (int64_t j = 0; j < 32; ++j)
      for (int64_t depth = 0; depth < depths; ++depth) {
        __m512i words[kPieces] = {};
        if (j < n) Form::key(p.key(first + j) + 32 * depth, dim - 32 * depth, words);
        bf16* to = keys + (j / 16 * depths + depth) * kForm + j % 16 * 32;
        for (int64_t i = 0; i < kPieces; ++i) _mm512_store_si512(to + i * kTile, words[i]);
      }
    bf16* values = values_of(block, depths) + at / 32 * dims * kForm;
    alignas(64) const typename Form::Element none[16] = {};
    const auto value = [&](int64_t j, int64_t d) { return j < n ? p.value(first + j) + d : none; };
    for (int64_t d = 0; d < dim; d += 16)
      pack_columns(values + d / 16 * kForm, [&](int64_t i, __m512i* words) {
        if (2 * i < n) Form::values(value(2 * i, d), value(2 * i + 1, d), dim - d, words);
      });
  }

  void meet(Meetings<TileBlock> meetings, float factor) {
    if constexpr (kTurns == 2) side_by_side(meetings, factor);
    else in_turn(meetings, factor);
  }

  template <class Problem>
  void store_rows(const Problem& p, int64_t row, int64_t rows, int64_t group) {
    const vf norm = div(set1(1.0f), load(lanes_[group].total));
    for (int64_t d = 0; d < dim_; d += 16) {
      const float* sums = sums_ + (group * dims_ + d / 16) * kSums;
      __m512i words[16];
      for (int i = 0; i < 16; ++i) words[i] = _mm512_castps_si512(mul(load(sums + 16 * i), norm));
      transpose_words(words);
      for (int64_t i = 0; i < rows; ++i)
        store_upto(p.output(row + i) + d, _mm512_castsi512_ps(words[i]), min64(16, dim_ - d));
    }
  }

 private:
  static constexpr int64_t kTile = Form::kTile;                  // bfloat16 of a tile
  static constexpr int64_t kForm = kPieces * kTile;              // of all pieces of one
  static constexpr int64_t kSums = 256;                          // float32 of a tile
  static constexpr int64_t kScores = 2 * kKeyBlock * 16;         // of a meeting
  static constexpr int64_t kWeights = kKeyBlock * 16 * kPieces;  // of a group
  static constexpr int64_t kTurns = Form::kProducts > 1 ? 2 : 1;

  // How far ahead tiles are fetched: one depth or 32 keys if that takes long enough, else the same depth of the next 32
  // keys, or the 32 after those. What is fetched too early pushes others out of the first-level cache.
  static constexpr bool kNear = kPieces > 1;

  static int64_t depths(int64_t head_dim) { return (head_dim + 31) / 32; }  // tiles of a key
  static int64_t dims(int64_t head_dim) { return (head_dim + 15) / 16; }    // of a value
  template <class T>
  static T* values_of(T* block, int64_t depths) { return block + kKeyBlock / 16 * depths * kForm; }

  // make(i, words) writes row i of every piece, or leaves it zero; rows become columns of words.
  template <class Make>
  static void pack_columns(bf16* to, const Make& make) {
    __m512i words[kPieces][16];
    for (int64_t i = 0; i < 16; ++i) {
      __m512i row[kPieces] = {};
      make(i, row);
      for (int64_t piece = 0; piece < kPieces; ++piece) words[piece][i] = row[piece];
    }
    for (auto& piece : words) {
      transpose_words(piece);
      for (int64_t i = 0; i < 16; ++i, to += 32) _mm512_store_si512(to, piece[i]);
    }
  }

  void in_turn(Meetings<TileBlock>& meetings, float factor) {
    for (auto m = meetings.next(); m.n > 0; m = meetings.next()) {
      Products(Work{*this, {}, m, 0}).finish();
      weigh<typename Form::Element>(*this, m, scores(0), factor,
                                    [&](int64_t g, int64_t j, vf a, vf b) { put(weights(0), g, j, a, b); });
      decay(m);
      Products(Work{*this, m, {}, 0}).finish();
    }
  }

  // While scores of a meeting become weights, tiles take the values of the one before and the scores of the next. Where
  // a depth takes one product alone, this gains nothing and twice the scores need more of the first-level cache.
  void side_by_side(Meetings<TileBlock>& meetings, float factor) {
    Meeting<Stored> before, m = meetings.next();
    Products(Work{*this, {}, m, 0}).finish();
    int64_t turn = 0;
    for (Meeting<Stored> after; m.n > 0; turn = 1 - turn, before = m, m = after) {
      after = meetings.next();
      decay(before);
      Products beside(Work{*this, before, after, 1 - turn}, m.groups * m.n / 2);
      weigh<typename Form::Element>(*this, m, scores(turn), factor, [&](int64_t g, int64_t j, vf a, vf b) {
        put(weights(turn), g, j, a, b);
        beside.some();
      });
      beside.finish();
    }
    decay(before);
    Products(Work{*this, before, {}, 1 - turn}).finish();
  }

  void put(bf16* weights, int64_t g, int64_t j, vf a, vf b) {
    __m512i words[kPieces];
    Form::weights(a, b, words);
    bf16* to = weights + g * kWeights + j / 32 * kForm + j % 32 * 16;
    for (int64_t i = 0; i < kPieces; ++i) _mm512_store_si512(to + i * kTile, words[i]);
  }

  float* scores(int64_t turn) const { return scores_ + turn * kScores; }
  // [32 keys][piece][16 pairs of keys][16 rows][2]
  bf16* weights(int64_t turn) const { return weights_ + turn * kScores * kPieces; }

  void decay(const Meeting<Stored>& m) {
    for (int64_t g = m.group; g < m.group + m.groups; ++g) {
      const vf decay = load(lanes_[g].decay);
      float* sums = sums_ + g * dims_ * kSums;
      for (int64_t i = 0; i < dims_ * kSums; i += 16) store(sums + i, mul(load(sums + i), decay));
    }
  }

  // The products of weights and values of one meeting, then of keys and queries of another; both have the same turn.
  struct Work {
    const TileBlock& block;
    Meeting<Stored> mixed, scored;
    int64_t turn, dim = 0, key = 0;

    int64_t products() const {
      const int64_t depths = block.depths_ - 1;
      const int64_t of_keys = depths * Form::kProducts + Form::products(block.dim_ - 32 * depths);
      return mixed.n / 32 * ((block.dims_ + 1) / 2) * Form::kProducts + scored.n / 32 * of_keys;
    }
    bool operator()(TileSum& sum) {
      if (mixed.n > 0 && dim < block.dims_) return mix(sum), dim += 2, true;
      if (key < scored.n) return score(sum), key += 32, true;
      return false;
    }
    void mix(TileSum& sum) const {
      const int64_t step = block.dims_ * kForm, ahead = kNear ? step : 2 * step;
      sum = {values_of(mixed.keys, block.depths_) + dim * kForm, block.weights(turn), min64(2, block.dims_ - dim),
             mixed.groups, kForm, kWeights, step, kForm, mixed.n / 32, 32, ahead, ahead,
             block.sums_ + (mixed.group * block.dims_ + dim) * kSums, kSums, block.dims_ * kSums, true};
    }
    void score(TileSum& sum) const {
      const int64_t step = block.depths_ * kForm, last = block.dim_ - 32 * (block.depths_ - 1);
      sum = {scored.keys + key / 16 * step, block.queries_ + scored.group * step, 2, scored.groups, step, step, kForm,
             kForm, block.depths_, last, kNear ? kForm : 2 * step, kNear ? kForm + step : 2 * step,
             block.scores(turn) + key * 16, kSums, kKeyBlock * 16, false};
    }
  };
  using Products = TileProducts<Form, Work>;

  int64_t dim_, depths_, dims_;
  float *sums_, *scores_;
  bf16 *queries_, *weights_;
  Lanes* lanes_;
};

}  // namespace antiphon::ANTIPHON_ISA
