// The block of attention.h on AMX tiles, for bfloat16; included by it where the instruction set has them.
//
// Scores: 16 keys, as they lie in memory, times 16 packed queries give a tile [key][row]. Sums: 16 dims of the
// transposed values times the weights, whose pairs of keys lie side by side, give a tile [dim][row]. Both take two by
// two tiles.
#pragma once

#include "tiles.h"

namespace antiphon::ANTIPHON_ISA {

class TileBlock {
 public:
  using Stored = bf16;

  TileBlock(int64_t head_dim, int64_t groups) : dim_(head_dim), depths_((head_dim + 31) / 32), dims_(2 * depths_) {
    const int64_t queries = groups * depths_ * kTile, state = groups * dims_ * kSums, scores = 2 * kKeyBlock * 16;
    sums_ = static_cast<float*>(scratch((state + scores) * 4 + (queries + scores) * 2 + groups * sizeof(Lanes)));
    scores_ = sums_ + state;
    queries_ = reinterpret_cast<bf16*>(scores_ + scores);
    weights_ = queries_ + queries;
    lanes_ = reinterpret_cast<Lanes*>(weights_ + scores);
    std::memset(sums_, 0, state * 4);
  }
  static int64_t padded(int64_t head_dim) { return round_up(head_dim, 32); }
  static void open() { configure_tiles(16); }
  static void close() { _tile_release(); }
  Lanes& lanes(int64_t group) { return lanes_[group]; }

  // [depth][16 pairs of dims][16 rows][2]
  template <class Problem>
  void load_queries(const Problem& p, int64_t row, int64_t rows, int64_t group) {
    for (int64_t depth = 0; depth < depths_; ++depth) {
      __m512i words[16];
      for (int64_t i = 0; i < 16; ++i)
        words[i] = i < rows ? dims_at(p.query(row + i), depth, dim_) : _mm512_setzero_si512();
      transpose_words(words);
      bf16* to = queries_ + (group * depths_ + depth) * kTile;
      for (int64_t i = 0; i < 16; ++i) _mm512_store_si512(to + 32 * i, words[i]);
    }
  }

  // Keys [first, first + n) to rows [at, at + 32) of a block, zero past n: keys are [16 keys][depth][key][32 dims],
  // values [32 keys][16 dims][dim][32 keys].
  template <class Problem>
  static void pack(const Problem& p, int64_t first, int64_t n, bf16* block, int64_t at) {
    const int64_t dim = p.head_dim, depths = (dim + 31) / 32;
    bf16* keys = block + at * depths * 32;
    for (int64_t j = 0; j < 32; ++j)
      for (int64_t depth = 0; depth < depths; ++depth)
        _mm512_store_si512(keys + (j / 16 * depths + depth) * kTile + j % 16 * 32,
                           j < n ? dims_at(p.key(first + j), depth, dim) : _mm512_setzero_si512());
    for (int64_t depth = 0; depth < depths; ++depth)
      pack_values(p, first, n, depth, block + ((kKeyBlock + at) * depths + 32 * depth) * 32);
  }

  template <int kGroups>
  void score(const bf16* keys, int64_t group, int64_t n) {
    for (int64_t j = 0; j < n; j += 32) {
      const bf16* key = keys + j / 16 * depths_ * kTile;
      const bf16* query = queries_ + group * depths_ * kTile;
      zero_sums<kGroups>();
      for (int64_t depth = 0; depth < depths_; ++depth, key += kTile, query += kTile) {
        fetch_tile(key + 2 * depths_ * kTile);
        fetch_tile(key + 3 * depths_ * kTile);
        products<kGroups>(key, depths_ * kTile, query, depths_ * kTile);
      }
      store_sums<kGroups>(scores_ + j * 16, kSums, kKeyBlock * 16);
    }
  }

  template <bool kMasked>
  void weigh(int64_t group, int64_t which, int64_t first, int64_t n, float factor) {
    float* scores = scores_ + which * kKeyBlock * 16;
    bf16* to = weights_ + which * kKeyBlock * 16;
    soften<bf16, kMasked>(lanes_[group], scores, first, n, factor,
                          [&](int64_t j, vf a, vf b) { _mm512_store_si512(to + j * 16, interleave(round_pair(a, b))); });
  }

  template <int kGroups>
  void mix(const bf16* block, int64_t group, int64_t n) {
    for (int g = 0; g < kGroups; ++g) {
      const vf decay = load(lanes_[group + g].decay);
      float* sums = sums_ + (group + g) * dims_ * kSums;
      for (int64_t i = 0; i < dims_ * kSums; i += 16) store(sums + i, mul(load(sums + i), decay));
    }
    for (int64_t dim = 0; dim < dims_; dim += 2) {
      float* sums = sums_ + (group * dims_ + dim) * kSums;
      const bf16* value = block + kKeyBlock * depths_ * 32 + dim * kTile;
      load_sums<kGroups>(sums, kSums, dims_ * kSums);
      for (int64_t j = 0; j < n; j += 32, value += dims_ * kTile) {
        fetch_tile(value + 2 * dims_ * kTile);
        fetch_tile(value + 2 * dims_ * kTile + kTile);
        products<kGroups>(value, kTile, weights_ + j * 16, kKeyBlock * 16);
      }
      store_sums<kGroups>(sums, kSums, dims_ * kSums);
    }
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
  static constexpr int64_t kTile = 512;  // bfloat16 of a tile
  static constexpr int64_t kSums = 256;  // float32 of a tile

  static __m512i dims_at(const bf16* row, int64_t depth, int64_t dim) {
    const int64_t left = dim - 32 * depth;
    return left >= 32 ? Dot<bf16>::load(row + 32 * depth) : Dot<bf16>::load_n(row + 32 * depth, left);
  }

  // 32 dims of up to 32 keys, transposed.
  template <class Problem>
  static void pack_values(const Problem& p, int64_t first, int64_t n, int64_t depth, bf16* to) {
    __m512i low[16], high[16];
    for (int64_t i = 0; i < 16; ++i) {
      const __m512i zero = _mm512_setzero_si512();
      const __m512i a = 2 * i < n ? dims_at(p.value(first + 2 * i), depth, p.head_dim) : zero;
      const __m512i b = 2 * i + 1 < n ? dims_at(p.value(first + 2 * i + 1), depth, p.head_dim) : zero;
      low[i] = _mm512_unpacklo_epi16(a, b);  // dims 0 to 3 of every eight
      high[i] = _mm512_unpackhi_epi16(a, b);
    }
    transpose_words(low);
    transpose_words(high);
    for (int64_t i = 0; i < 16; ++i) {
      const int64_t d = i / 4 * 8 + i % 4;
      _mm512_store_si512(to + d * 32, low[i]);
      _mm512_store_si512(to + (d + 4) * 32, high[i]);
    }
  }

  // Tiles 0 to 3 += two tiles of rows times one or two of columns.
  template <int kGroups>
  static void products(const bf16* rows, int64_t row_step, const bf16* columns, int64_t column_step) {
    _tile_loadd(4, rows, 64);
    _tile_loadd(6, columns, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, rows + row_step, 64);
    _tile_dpbf16ps(1, 5, 6);
    if constexpr (kGroups == 2) {
      _tile_loadd(7, columns + column_step, 64);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }

  int64_t dim_, depths_, dims_;
  float *sums_, *scores_;
  bf16 *queries_, *weights_;
  Lanes* lanes_;
};

}  // namespace antiphon::ANTIPHON_ISA
