// Wide linear in vectors of float32: VF rows of x stand side by side in a vector, W is read as it lies.
//
// x is packed in blocks (word_blocks.h), so that a word of a row of W, in all lanes, meets the same word of VF rows of x:
// 8 rows of W (4 where there are 16 registers) by three blocks of x are accumulators enough to keep the multipliers busy
// with half as many loads. k is walked in chunks that stay in the first-level cache for a panel of W and three blocks; sums
// wait in memory for the next one. An output is one sum over k in order, word by word, so a row has the same result at any
// number of rows.
#pragma once

#include "activations.h"
#include "kernels.h"
#include "simd.h"
#include "weights_ahead.h"
#include "word_blocks.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int64_t kVectorPanel = 32;    // rows of W that all rows of x pass by
constexpr int64_t kVectorChunk = 128;   // words
constexpr int64_t kVectorRows = 1024;   // of x at a time: their sums stay in the second-level cache

constexpr int kRowsOfW = VF == 16 ? 8 : 4;
template <class T>
constexpr int kBlocksOfX = VF == 8 && kWordColumns<T> == 2 ? 2 : 3;  // bfloat16 in halves takes registers

// Columns of a packed row.
template <class T>
constexpr int64_t row_columns(int64_t k) {
  return wide_columns(sizeof(T) == sizeof(float) ? DType::f32 : DType::bf16, k);
}

template <class T>
struct VectorProblem {
  const T* x;       // blocks of VF rows, row_columns<T>(k): words first, [word_columns(k) / kWordColumns][VF][kWordColumns]
  const T* w;       // [n, k], rows w_stride apart
  int64_t w_stride;
  const T* bias;    // or null
  T* out;           // [num_rows, n]
  T* packed_out;    // in place of out, with an activation: blocks of VF rows as words
  Activation activation;
  int64_t num_rows, n, k;

  int64_t block() const { return VF * row_columns<T>(k); }  // elements
  int64_t blocks() const { return (num_rows + VF - 1) / VF; }
};

// sums[block][row of W][VF] of kRows rows of W, `stride` elements apart, times kBlocks blocks of x, += over columns
// [0, columns) from `w` and `x` on. kHalf: one more block, whose upper rows do not exist; two rows of W share a vector there.
template <class T, int kRows, int kBlocks, bool kHalf>
inline void multiply_words(const T* w, int64_t stride, const T* x, int64_t block, int64_t columns, bool first,
                           float* sums) {
  using D = Dot<T>;
  constexpr int64_t kColumns = kWordColumns<T>;
  constexpr int kPairs = kHalf ? kRows / 2 : 0;
  vf acc[kRows][kBlocks], half[kPairs + 1];
  float* last_sums = sums + kBlocks * kVectorPanel * VF;
  for (int r = 0; r < kRows; ++r)
    for (int b = 0; b < kBlocks; ++b) acc[r][b] = first ? set1(0.0f) : load(sums + (b * kVectorPanel + r) * VF);
  if constexpr (kHalf)
    for (int r = 0; r < kPairs; ++r)
      half[r] = first ? set1(0.0f) : D::join(load(last_sums + 2 * r * VF), load(last_sums + (2 * r + 1) * VF));
  const auto step = [&](const auto& word) {
    typename D::vec rows_of_x[kBlocks], lower, before;
    for (int b = 0; b < kBlocks; ++b) rows_of_x[b] = D::load(x + b * block);
    if constexpr (kHalf) lower = D::twice(x + kBlocks * block);
    for (int r = 0; r < kRows; ++r) {
      const typename D::vec row = word(r);
      for (int b = 0; b < kBlocks; ++b) acc[r][b] = D::step(acc[r][b], row, rows_of_x[b]);
      if constexpr (kHalf) {
        if (r % 2) half[r / 2] = D::step(half[r / 2], D::halves(before, row), lower);
        before = row;
      }
    }
    (void)lower, (void)before;
  };
  int64_t i = 0;
  for (; i + kColumns <= columns; i += kColumns, x += D::width)
    step([&](int r) { return D::splat(w + r * stride + i); });
  if (i < columns)
    step([&](int r) {
      const T last[2] = {w[r * stride + i], T{}};
      return D::splat(last);
    });
  for (int r = 0; r < kRows; ++r)
    for (int b = 0; b < kBlocks; ++b) store(sums + (b * kVectorPanel + r) * VF, acc[r][b]);
  if constexpr (kHalf)
    for (int r = 0; r < kPairs; ++r) {
      store(last_sums + 2 * r * VF, D::lower(half[r]));
      store(last_sums + (2 * r + 1) * VF, D::upper(half[r]));
    }
}

// multiply_words for `rows` rows of W, at most a panel.
template <class T, int kBlocks, bool kHalf = false>
inline void multiply_panel(const T* w, int64_t stride, int64_t rows, const T* x, int64_t block, int64_t columns,
                           bool first, float* sums, RowsAhead& ahead) {
  constexpr int kRows = kRowsOfW;
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) {
    ahead.fetch();
    multiply_words<T, kRows, kBlocks, kHalf>(w + r * stride, stride, x, block, columns, first, sums + r * VF);
  }
  for (; r < rows; ++r)
    multiply_words<T, 1, kBlocks + kHalf, false>(w + r * stride, stride, x, block, columns, first, sums + r * VF);
}

// How many of `left` blocks of x, at most `most`, pass by W together: whole ones, and whether the last one, if only half
// there, as well.
struct BlocksOfX {
  int64_t whole;
  bool half;

  BlocksOfX(int64_t left, int64_t most, bool half_last) : whole(min64(most, left)), half(false) {
    if (!half_last || left > most + 1) return;
    if (left == most + 1) whole = most - 1;  // leaves one for the half, which alone has too few sums
    else if (left > 1) whole = left - 1, half = true;
  }
};

// out[t][0, columns) = sums[.., t] + bias.
template <class T>
inline void store_sums_of(const float* sums, const T* bias, int64_t rows, int64_t columns, T* out, int64_t stride) {
  for (int64_t c = 0; c < columns; c += VF) {
    const int64_t held = min64(VF, columns - c);
    vf v[VF];
    for (int64_t i = 0; i < VF; ++i) v[i] = i < held ? load(sums + (c + i) * VF) : set1(0.0f);
    transpose(v);
    const vf shift = bias ? load_upto(bias + c, held) : set1(0.0f);
    for (int64_t t = 0; t < rows; ++t) store_upto(out + t * stride + c, add(v[t], shift), held);
  }
}

// Results of a whole panel, rounded, activated and rounded again, as the words of x that they are to the next linear map.
template <class T, class F>
inline void store_activated(const float* sums, const T* bias, const F& f, T* out) {
  for (int64_t i = 0; i < kVectorPanel; i += kBatch) {
    const auto y = f(batch<kBatch>([&](int j) {
      return through<T>(add(load(sums + (i + j) * VF), set1(bias ? widen(bias[i + j]) : 0.0f)));
    }));
    for (int j = 0; j < kBatch; j += kWordColumns<T>) store_word_of(out + (i + j) * VF, &y.v[j]);
  }
}

// Results [n, n + columns) of one block of x.
template <class T>
inline void store_block(const VectorProblem<T>& p, int64_t block, int64_t n, int64_t columns, const float* sums) {
  const T* bias = p.bias ? p.bias + n : nullptr;
  const int64_t row = block * VF;
  if (p.activation == Activation::none)
    return store_sums_of(sums, bias, min64(VF, p.num_rows - row), columns, p.out + row * p.n + n, p.n);
  T* out = p.packed_out + row * row_columns<T>(p.n) + n * VF;
  p.activation == Activation::gelu_tanh ? store_activated(sums, bias, [](auto x) { return gelu_tanh<T>(x); }, out)
                                        : store_activated(sums, bias, [](auto x) { return gelu_exact<T>(x); }, out);
}

inline int64_t vector_panel_bytes(int64_t num_rows) {
  return (min64(num_rows, kVectorRows) + VF - 1) / VF * kVectorPanel * VF * 4;
}

// Rows [n, n + columns) of W, at most a panel, which lie at `w`, for all rows of x; `then`: rows that are read after them,
// as many and as far apart, or null.
template <class T>
inline void vector_panel(const VectorProblem<T>& p, const T* w, int64_t stride, int64_t n, int64_t columns,
                         const T* then, float* sums) {
  constexpr int64_t kSize = sizeof(T), kChunk = kVectorChunk * kWordColumns<T>;
  constexpr int kBlocks = kBlocksOfX<T>;
  const int64_t blocks = p.blocks(), steps = (blocks + kBlocks - 1) / kBlocks * (kVectorPanel / kRowsOfW);
  const bool half_last = VF == 16 && p.num_rows % VF > 0 && p.num_rows % VF <= VF / 2;
  for (int64_t begin = 0; begin < p.k; begin += kChunk) {
    const int64_t length = min64(kChunk, p.k - begin), later = begin + kChunk;
    RowsAhead ahead;
    if (const T* next = later < p.k ? w + later : then)
      ahead = {next, stride * kSize, min64(kChunk, later < p.k ? p.k - later : p.k) * kSize, columns, steps};
    for (int64_t b = 0; b < blocks;) {
      float* to = sums + b * kVectorPanel * VF;
      const T* x = p.x + b * p.block() + begin * VF;
      const BlocksOfX held(blocks - b, kBlocks, half_last);
      auto run = held.whole == 3 ? multiply_panel<T, 3> : held.whole == 2 ? multiply_panel<T, 2> : multiply_panel<T, 1>;
      if constexpr (VF == 16)
        if (held.half) run = held.whole == 2 ? multiply_panel<T, 2, true> : multiply_panel<T, 1, true>;
      run(w + begin, stride, columns, x, p.block(), length, begin == 0, to, ahead);
      b += held.whole + held.half;
    }
  }
  for (int64_t b = 0; b < blocks; ++b) store_block(p, b, n, columns, sums + b * kVectorPanel * VF);
}

template <class T>
inline VectorProblem<T> vector_branch(const LinearWideArgs& a, int64_t which) {
  const int64_t first = which == 0 ? 0 : a.split, skipped = which == 0 ? 0 : (a.split + 15) / 16 * 16;
  return {static_cast<const T*>(a.workspace) + skipped * row_columns<T>(a.k),
          a.weight ? static_cast<const T*>(a.weight) + which * a.n * a.w_stride : nullptr,
          a.w_stride,
          a.bias ? static_cast<const T*>(a.bias) + which * a.n : nullptr,
          static_cast<T*>(a.out) + first * a.n,
          static_cast<T*>(a.packed_out),
          a.activation,
          (which == 0 ? a.split : a.num_rows) - first, a.n, a.k};
}

// panel(problem, branch, n, columns, next) for everything that this thread claims; `next`: the first row of the panel
// after it if threads are equally fast, or past the last one.
template <class T, class Panel>
inline void claim_vector_panels(const LinearWideArgs& a, int count, const Panel& panel) {
  const auto claim = [&] { return a.next->fetch_add(1, std::memory_order_relaxed); };
  const int64_t units = (a.n + kVectorPanel - 1) / kVectorPanel;
  int64_t unit = claim(), first = 0;
  for (int64_t branch = 0; branch < 2; ++branch) {
    const VectorProblem<T> whole = vector_branch<T>(a, branch);
    for (int64_t row = 0; row < whole.num_rows; row += kVectorRows, first += units) {
      VectorProblem<T> p = whole;
      p.x += row / VF * p.block();
      p.out += row * p.n;
      if (p.packed_out) p.packed_out += row * row_columns<T>(p.n);
      p.num_rows = min64(kVectorRows, p.num_rows - row);
      for (; unit < first + units; unit = claim()) {
        const int64_t n = (unit - first) * kVectorPanel;
        panel(p, branch, n, min64(kVectorPanel, a.n - n), n + count * kVectorPanel);
      }
    }
  }
}

// done(block) follows each block.
template <class T, class Done>
inline void pack_for_vectors(const LinearWideArgs& a, int index, int count, const Done& done) {
  const int64_t text = (a.split + 15) / 16 * 16 / VF, blocks = text + (a.num_rows - a.split + VF - 1) / VF;
  const Range range = partition(blocks, 1, index, count);
  for (int64_t block = range.begin; block < range.end; ++block) {
    const int64_t row = block < text ? block * VF : a.split + (block - text) * VF;
    const int64_t rows = max64(0, min64(VF, (block < text ? a.split : a.num_rows) - row));
    const T* first = static_cast<const T*>(a.x) + (rows ? row * a.x_stride : 0);
    T* to = static_cast<T*>(a.workspace) + block * VF * row_columns<T>(a.k);
    pack_words([&](int64_t i) { return first + i * a.x_stride; }, rows, a.k, word_columns(a.k), to);
    done(to);
  }
}

template <class T>
inline void pack_for_vectors(const LinearWideArgs& a, int index, int count) {
  pack_for_vectors<T>(a, index, count, [](T*) {});
}

template <class T>
inline void wide_in_vectors(const LinearWideArgs& a, int count) {
  float* sums = static_cast<float*>(scratch(vector_panel_bytes(max64(a.split, a.num_rows - a.split))));
  claim_vector_panels<T>(a, count, [&](const VectorProblem<T>& p, int64_t, int64_t n, int64_t columns, int64_t next) {
    vector_panel(p, p.w + n * p.w_stride, p.w_stride, n, columns,
                 next + columns <= p.n ? p.w + next * p.w_stride : nullptr, sums);
  });
}

}  // namespace antiphon::ANTIPHON_ISA
