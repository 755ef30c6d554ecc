// The block of attention.h in vectors of float32; included by it.
#pragma once

namespace antiphon::ANTIPHON_ISA {

// Queries and sums are [group][dim][VF]; a block of keys is [key][dim], of values [dim / kDims][key][kDims].
template <class T>
class VectorBlock {
 public:
  using Stored = float;
  static constexpr int64_t kPieces = 1;  // Stored of an element
  static constexpr int64_t kKeys = VF == 16 ? 8 : 4, kDims = kKeys;  // accumulators: as many by two groups

  VectorBlock(int64_t head_dim, int64_t groups) : dim_(head_dim), padded_(padded(head_dim)) {
    const int64_t state = groups * padded_ * VF, scores = 2 * kKeyBlock * VF;
    queries_ = static_cast<float*>(scratch((2 * state + scores) * 4 + groups * sizeof(Lanes)));
    sums_ = queries_ + state;
    scores_ = sums_ + state;
    lanes_ = reinterpret_cast<Lanes*>(scores_ + scores);
    std::memset(sums_, 0, state * 4);
  }
  static int64_t padded(int64_t head_dim) { return round_up(head_dim, kDims); }
  static void open() {}
  static void close() {}
  Lanes& lanes(int64_t group) { return lanes_[group]; }

  template <class Problem>
  void load_queries(const Problem& p, int64_t row, int64_t rows, int64_t group) {
    float* to = queries_ + group * padded_ * VF;
    for (int64_t d = 0; d < padded_; d += VF) {
      vf values[VF];
      for (int64_t i = 0; i < VF; ++i)
        values[i] = i < rows && d < dim_ ? load_upto(p.query(row + i) + d, min64(VF, dim_ - d)) : set1(0.0f);
      transpose(values);
      for (int64_t k = 0; k < min64(VF, padded_ - d); ++k) store(to + (d + k) * VF, values[k]);
    }
  }

  // Keys [first, first + n) to rows [at, at + kKeyStep) of a block, zero past n.
  template <class Problem>
  static void pack(const Problem& p, int64_t first, int64_t n, float* block, int64_t at) {
    const int64_t dim = p.head_dim, width = padded(dim);
    float* keys = block + at * width;
    float* values = block + kKeyBlock * width + at * kDims;
    std::memset(keys, 0, kKeyStep * width * 4);
    for (int64_t d = 0; d < width; d += kDims) std::memset(values + d * kKeyBlock, 0, kKeyStep * kDims * 4);
    for (int64_t j = 0; j < n; ++j) {
      const T* k = p.key(first + j);
      const T* v = p.value(first + j);
      for (int64_t d = 0; d < dim; ++d) keys[j * width + d] = widen(k[d]);
      for (int64_t d = 0; d < dim; d += kDims)
        for (int64_t i = 0; i < min64(kDims, dim - d); ++i) values[d * kKeyBlock + j * kDims + i] = widen(v[d + i]);
    }
  }

  void meet(Meetings<VectorBlock> meetings, float factor) {
    for (auto m = meetings.next(); m.n > 0; m = meetings.next()) {
      m.groups == 2 ? score<2>(m.keys, m.group, m.n) : score<1>(m.keys, m.group, m.n);
      weigh<T>(*this, m, scores_, factor, [&](int64_t g, int64_t j, vf a, vf b) {
        store(scores_ + (g * kKeyBlock + j) * VF, through<T>(a));
        store(scores_ + (g * kKeyBlock + j + 1) * VF, through<T>(b));
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
  // Scores of groups [group, group + kGroups) against the block's first n keys.
  template <int kGroups>
  void score(const float* keys, int64_t group, int64_t n) {
    const float* q = queries_ + group * padded_ * VF;
    for (int64_t j = 0; j < n; j += kKeys) {
      vf sums[kKeys][kGroups];
      for (auto& row : sums)
        for (vf& sum : row) sum = set1(0.0f);
      for (int64_t d = 0; d < dim_; ++d) {
        vf x[kGroups];
        for (int g = 0; g < kGroups; ++g) x[g] = load(q + (g * padded_ + d) * VF);
        for (int k = 0; k < kKeys; ++k) {
          const vf key = set1(keys[(j + k) * padded_ + d]);
          for (int g = 0; g < kGroups; ++g) sums[k][g] = fmadd(key, x[g], sums[k][g]);
        }
      }
      for (int k = 0; k < kKeys; ++k)
        for (int g = 0; g < kGroups; ++g) store(scores_ + (g * kKeyBlock + j + k) * VF, sums[k][g]);
    }
  }

  // Adds weights times values of the block's first n keys to the sums, which decay first.
  template <int kGroups>
  void mix(const float* block, int64_t group, int64_t n) {
    vf decay[kGroups];
    for (int g = 0; g < kGroups; ++g) decay[g] = load(lanes_[group + g].decay);
    for (int64_t d = 0; d < padded_; d += kDims) {
      const float* v = block + kKeyBlock * (padded_ + d);
      float* to = sums_ + (group * padded_ + d) * VF;
      vf sums[kDims][kGroups];
      for (int k = 0; k < kDims; ++k)
        for (int g = 0; g < kGroups; ++g) sums[k][g] = mul(load(to + (g * padded_ + k) * VF), decay[g]);
      for (int64_t j = 0; j < n; ++j) {
        vf w[kGroups];
        for (int g = 0; g < kGroups; ++g) w[g] = load(scores_ + (g * kKeyBlock + j) * VF);
        for (int k = 0; k < kDims; ++k) {
          const vf value = set1(v[j * kDims + k]);
          for (int g = 0; g < kGroups; ++g) sums[k][g] = fmadd(value, w[g], sums[k][g]);
        }
      }
      for (int k = 0; k < kDims; ++k)
        for (int g = 0; g < kGroups; ++g) store(to + (g * padded_ + k) * VF, sums[k][g]);
    }
  }

  int64_t dim_, padded_;
  float *queries_, *sums_, *scores_;
  Lanes* lanes_;
};

}  // namespace antiphon::ANTIPHON_ISA
