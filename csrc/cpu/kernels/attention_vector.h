// The block of attention.h in vectors of float32 sums; included by it.
#pragma once

#include "word_blocks.h"

namespace antiphon::ANTIPHON_ISA {

// What elements are kept as: bfloat16 where two are multiplied at once, else float32.
#if defined(__AVX512BF16__)
template <class T>
using VectorStored = T;
#else
template <class T>
using VectorStored = float;
#endif

inline float stored_as(float, bf16 x) { return widen(x); }
template <class T>
inline T stored_as(T, T x) { return x; }

// Queries are [group][words of dims][VF][word], sums [group][dim][VF]; a block of keys is [key][dim], of values
// [dim / kDims][words of keys][kDims][word]. Weights, words of keys too, take the place of the scores.
template <class T>
class VectorBlock {
 public:
  using Stored = VectorStored<T>;
  using D = Dot<Stored>;
  using Vec = typename D::vec;
  static constexpr int64_t kWord = kWordColumns<Stored>;
  static constexpr int64_t kPieces = 1;  // Stored of an element
  static constexpr int64_t kKeys = VF == 16 ? 8 : 4, kDims = kKeys;  // accumulators: as many by two groups

  VectorBlock(int64_t head_dim, int64_t groups) : dim_(head_dim), padded_(padded(head_dim)) {
    const int64_t state = groups * padded_ * VF, scores = 2 * kKeyBlock * VF;
    sums_ = static_cast<float*>(scratch((state + scores) * 4 + state * sizeof(Stored) + groups * sizeof(Lanes)));
    scores_ = sums_ + state;
    queries_ = reinterpret_cast<Stored*>(scores_ + scores);
    lanes_ = reinterpret_cast<Lanes*>(queries_ + state);
    std::memset(sums_, 0, state * 4);
  }
  static int64_t padded(int64_t head_dim) { return round_up(head_dim, kDims); }
  static void open() {}
  static void close() {}
  Lanes& lanes(int64_t group) { return lanes_[group]; }

  template <class Problem>
  void load_queries(const Problem& p, int64_t row, int64_t rows, int64_t group) {
    Stored* to = queries_ + group * padded_ * VF;
    if constexpr (std::is_same_v<T, Stored>) {
      pack_words([&](int64_t i) { return p.query(row + i); }, rows, dim_, padded_, to);
    } else {
      for (int64_t d = 0; d < padded_; d += VF) {
        vf values[VF];
        for (int64_t i = 0; i < VF; ++i)
          values[i] = i < rows && d < dim_ ? load_upto(p.query(row + i) + d, min64(VF, dim_ - d)) : set1(0.0f);
        transpose(values);
        for (int64_t k = 0; k < min64(VF, padded_ - d); ++k) store(to + (d + k) * VF, values[k]);
      }
    }
  }

  // Keys [first, first + n) to rows [at, at + kKeyStep) of a block, zero past n. Those of the next head, which lie
  // behind them, are asked for: rows are too far apart for the processor to guess. Less than two lines come by themselves.
  template <class Problem>
  static void pack(const Problem& p, int64_t first, int64_t n, Stored* block, int64_t at) {
    const int64_t dim = p.head_dim, width = padded(dim);
    Stored* keys = block + at * width;
    Stored* values = block + kKeyBlock * width + at * kDims;
    if (n < kKeyStep || dim < width) {
      std::memset(keys, 0, kKeyStep * width * sizeof(Stored));
      for (int64_t d = 0; d < width; d += kDims) std::memset(values + d * kKeyBlock, 0, kKeyStep * kDims * sizeof(Stored));
    }
    for (int64_t j = 0; j < n; ++j) {
      const T *k = p.key(first + j), *v = p.value(first + j);
      if (dim * static_cast<int64_t>(sizeof(T)) >= 128)
        for (int64_t d = dim; d < 2 * dim; d += 64 / static_cast<int64_t>(sizeof(T))) prefetch(k + d), prefetch(v + d);
      for (int64_t d = 0; d < dim; ++d) keys[j * width + d] = stored_as(Stored{}, k[d]);
    }
    for (int64_t j = 0; j < n; j += kWord) {  // words of whole runs at once: a DiT evaluation 204 -> 193 ms (6 layers)
      const int64_t held = min64(kWord, n - j);
      const T *a = p.value(first + j), *b = p.value(first + j + held - 1);
      const int64_t whole = held == kWord ? dim / kDims * kDims : 0;
      for (int64_t d = 0; d < dim; d += kDims) {
        Stored* to = values + d * kKeyBlock + j * kDims;
        for (int64_t i = 0; d < whole && i < kDims; ++i) {
          to[i * kWord] = stored_as(Stored{}, a[d + i]);
          to[i * kWord + kWord - 1] = stored_as(Stored{}, b[d + i]);
        }
        for (int64_t i = 0; d >= whole && i < min64(kDims, dim - d); ++i)
          for (int64_t of = 0; of < held; ++of) to[i * kWord + of] = stored_as(Stored{}, of ? b[d + i] : a[d + i]);
      }
    }
  }

  void meet(Meetings<VectorBlock> meetings, float factor) {
    for (auto m = meetings.next(); m.n > 0; m = meetings.next()) {
      m.groups == 2 ? score<2>(m.keys, m.group, m.n) : score<1>(m.keys, m.group, m.n);
      weigh<T>(*this, m, scores_, factor, [&](int64_t g, int64_t j, vf a, vf b) {
        Stored* to = weights(g) + j * VF;
        if constexpr (kWord == 2) {
          const vf pair[] = {a, b};
          store_word_of(to, pair);
        } else {
          store(to, through<T>(a));
          store(to + VF, through<T>(b));
        }
      });
      m.groups == 2 ? mix<2>(m.keys, m.group, m.n) : mix<1>(m.keys, m.group, m.n);
    }
  }

  template <class Problem>
  void store_rows(const Problem& p, int64_t row, int64_t rows, int64_t group) {
    const float* from = sums_ + group * padded_ * VF;
    const vf norm = div(set1(1.0f), load(lanes_[group].total));
    for_vectors(dim_, [&](int64_t d, int64_t n) {
      vf values[VF];
      for (int64_t k = 0; k < VF; ++k) values[k] = k < n ? mul(load(from + (d + k) * VF), norm) : set1(0.0f);
      transpose(values);
      for (int64_t i = 0; i < rows; ++i) store_upto(p.output(row + i) + d, values[i], n);
    });
  }

 private:
  // Of group g of a meeting, over its scores: a word is never behind the scores that it is made of.
  Stored* weights(int64_t g) { return reinterpret_cast<Stored*>(scores_ + g * kKeyBlock * VF); }

  // Scores of groups [group, group + kGroups) against the block's first n keys.
  template <int kGroups>
  void score(const Stored* keys, int64_t group, int64_t n) {
    const Stored* q = queries_ + group * padded_ * VF;
    for (int64_t j = 0; j < n; j += kKeys) {
      vf sums[kKeys][kGroups];
      for (auto& row : sums)
        for (vf& sum : row) sum = set1(0.0f);
      for (int64_t d = 0; d < dim_; d += kWord) {
        Vec x[kGroups];
        for (int g = 0; g < kGroups; ++g) x[g] = D::load(q + (g * padded_ + d) * VF);
        for (int k = 0; k < kKeys; ++k) {
          const Vec key = D::splat(keys + (j + k) * padded_ + d);
          for (int g = 0; g < kGroups; ++g) sums[k][g] = D::step(sums[k][g], key, x[g]);
        }
      }
      for (int k = 0; k < kKeys; ++k)
        for (int g = 0; g < kGroups; ++g) store(scores_ + (g * kKeyBlock + j + k) * VF, sums[k][g]);
    }
  }

  // Adds weights times values of the block's first n keys to the sums, which decay first.
  template <int kGroups>
  void mix(const Stored* block, int64_t group, int64_t n) {
    vf decay[kGroups];
    for (int g = 0; g < kGroups; ++g) decay[g] = load(lanes_[group + g].decay);
    for (int64_t d = 0; d < padded_; d += kDims) {
      const Stored* v = block + kKeyBlock * (padded_ + d);
      float* to = sums_ + (group * padded_ + d) * VF;
      vf sums[kDims][kGroups];
      for (int k = 0; k < kDims; ++k)
        for (int g = 0; g < kGroups; ++g) sums[k][g] = mul(load(to + (g * padded_ + k) * VF), decay[g]);
      for (int64_t j = 0; j < n; j += kWord) {
        Vec w[kGroups];
        for (int g = 0; g < kGroups; ++g) w[g] = D::load(weights(g) + j * VF);
        for (int k = 0; k < kDims; ++k) {
          const Vec value = D::splat(v + j * kDims + k * kWord);
          for (int g = 0; g < kGroups; ++g) sums[k][g] = D::step(sums[k][g], value, w[g]);
        }
      }
      for (int k = 0; k < kDims; ++k)
        for (int g = 0; g < kGroups; ++g) store(to + (g * padded_ + k) * VF, sums[k][g]);
    }
  }

  int64_t dim_, padded_;
  float *sums_, *scores_;
  Stored* queries_;
  Lanes* lanes_;
};

}  // namespace antiphon::ANTIPHON_ISA
