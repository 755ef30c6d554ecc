// Wide linear in vectors of float32: VF outputs stand side by side in a vector, rows of x are packed as they lie.
//
// W is taken a panel of outputs and a chunk of k at a time, word by word (word_blocks.h): a word of VF rows of W meets the
// same word of a row of x in all lanes. Three vectors of outputs by six rows of x (two by six, of bfloat16 by four, where
// there are 16 registers) are sums enough to keep the multipliers busy; any number of rows fills them. A chunk stays in the
// first-level cache while the rows pass by; sums wait in memory for the next one. An output is one sum over k in order, word
// by word, and its bias, so a row has the same result at any number of rows. Taking a chunk costs as much as the products of
// 8 (bfloat16) to 20 rows (float32 in pairs); weights that serve again and again are stored as they are taken, in panels
// (linear_kernels.h).
#pragma once

#include "activations.h"
#include "kernels.h"
#include "simd.h"
#include "weights_ahead.h"
#include "word_blocks.h"

namespace antiphon::ANTIPHON_ISA {

// Columns of a packed row.
template <class T>
constexpr int64_t row_columns(int64_t k) {
  return wide_columns(sizeof(T) == sizeof(float) ? DType::f32 : DType::bf16, k);
}

constexpr int kPanelVectors = VF == 16 ? 3 : 2;       // of outputs
constexpr int64_t kVectorPanel = kPanelVectors * VF;  // outputs that all rows of x pass by
constexpr int64_t kVectorRows = 512;                  // of x at a time: a chunk and sums stay in the second-level cache
template <class T>
constexpr int kRowsOfX = VF == 8 && kWordColumns<T> == 2 ? 4 : 6;  // bfloat16 in halves takes registers
template <class T>
constexpr int64_t kChunkColumns = kWideChunk * kWordColumns<T>;
template <class T>
constexpr int64_t kWordElements = kVectorPanel * kWordColumns<T>;  // of a word of all outputs
template <class T>
constexpr int64_t kChunkElements = row_columns<T>(kChunkColumns<T>) * kVectorPanel;  // words, and what is kept of them

// What a packed row has for the chunk that begins at a column, behind its own columns.
template <class T>
inline T* chunk_sums(T* row, int64_t k, int64_t column) { return row + word_columns(k) + column / kWideChunk * 2; }

template <class T>
struct VectorProblem {
  const T* x;       // [num_rows] of row_columns<T>(k): columns first, zero from k to whole words
  const T* w;       // [n, k], rows w_stride apart
  int64_t w_stride;
  const T* bias;    // or null
  T* out;           // [num_rows, n]
  T* packed_out;    // in place of out, with an activation: rows as the next linear map reads them
  Activation activation;
  int64_t num_rows, n, k;
};

// A chunk of W for a panel, as products read it: [words][kPanelVectors][VF][word]. Outputs past the last whole vector are
// not set.
template <class T>
inline void take_chunk(const T* w, int64_t stride, int64_t outputs, int64_t columns, T* to) {
  const int64_t end = (columns + kWordColumns<T> - 1) / kWordColumns<T> * kWordColumns<T>;
  for (int64_t r = 0; r < outputs; r += VF)
    pack_words([&](int64_t i) { return w + (r + i) * stride; }, min64(VF, outputs - r), columns, end,
               to + r * kWordColumns<T>, kWordElements<T>);
}

// Rows of x, `stride` apart, at the first column of a chunk of W.
template <class T>
struct RowsOfX {
  const T* columns;
  const T* sums;  // of the chunk, where products go in pairs
  int64_t stride;
};

// Sums of rows of x and a panel of outputs: those so far, null at the first chunk; where they go; what is added at the last.
struct Sums {
  const float* from;  // rows kVectorPanel elements apart
  float* to;
  int64_t to_stride;
  const float* bias;  // or null

  vf before(int row, int v) const { return from ? load(from + row * kVectorPanel + v * VF) : set1(0.0f); }
  template <int R, int V>
  void put(const vf (&sums)[R][V]) const {
    for (int v = 0; v < V; ++v) {
      const vf more = bias ? load(bias + v * VF) : set1(0.0f);
      for (int r = 0; r < R; ++r) store(to + r * to_stride + v * VF, bias ? add(sums[r][v], more) : sums[r][v]);
    }
  }
};

// What the steps of a tile ask for, one after the other.
struct Ahead {
  const char* at;
  int64_t step;  // bytes
};

// How a chunk of W and R rows of x meet.
template <class T>
struct VectorProducts {
  static void take(const T* w, int64_t stride, int64_t outputs, int64_t columns, T* chunk) {
    take_chunk(w, stride, outputs, columns, chunk);
  }
  // The weight of which `stored`, of output r of a chunk, was made.
  static T taken(const T*, int64_t, int64_t, T stored) { return stored; }

  static constexpr int64_t kSteps = kWideChunk;  // of a chunk
  // Sums with products of V vectors of outputs.
  template <int R, int V>
  static void multiply(const T* chunk, const RowsOfX<T>& x, int64_t columns, const Sums& s, Ahead next) {
    using D = Dot<T>;
    vf acc[R][V];
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) acc[r][v] = s.before(r, v);
    for (int64_t c = 0; c < columns; c += kWordColumns<T>, chunk += kWordElements<T>, next.at += next.step) {
      prefetch(next.at);
      typename D::vec of_w[V];
      for (int v = 0; v < V; ++v) of_w[v] = D::load(chunk + v * D::width);
      for (int r = 0; r < R; ++r) {
        const typename D::vec of_x = D::splat(x.columns + r * x.stride + c);
        for (int v = 0; v < V; ++v) acc[r][v] = D::step(acc[r][v], of_w[v], of_x);
      }
    }
    s.put(acc);
  }
};

// Products::multiply for R rows, of at most kRowsOfX, and as many vectors as hold `outputs`.
template <class Products, int R, class... Args>
inline void multiply_outputs(int64_t outputs, const Args&... args) {
  if constexpr (kPanelVectors == 3)
    if (outputs > 2 * VF) return Products::template multiply<R, 3>(args...);
  outputs > VF ? Products::template multiply<R, 2>(args...) : Products::template multiply<R, 1>(args...);
}
template <class Products, int R, class... Args>
inline void multiply_rows(int64_t rows, int64_t outputs, const Args&... args) {
  if constexpr (R > 1)
    if (rows < R) return multiply_rows<Products, R - 1>(rows, outputs, args...);
  multiply_outputs<Products, R>(outputs, args...);
}

// Results [n, n + outputs) from their sums [rows][kVectorPanel]: rounded, activated and rounded again, to
// packed rows. As many rows at a time as fill a batch; those past `rows` are computed and let go.
template <class T, class F>
inline void store_activated(const float* sums, int64_t rows, int64_t n, int64_t outputs, const F& f, int64_t stride,
                            T* to) {
  constexpr int kRows = kBatch / kPanelVectors;
  for (int64_t t = 0; t < rows; t += kRows, sums += kRows * kVectorPanel) {
    const auto y = f(batch<kRows * kPanelVectors>([&](int i) { return through<T>(load(sums + i * VF)); }));
    for (int r = 0; r < kRows; ++r) {
      if (t + r == rows) break;
      T* row = to + (t + r) * stride + n;
      for (int v = 0; v < kPanelVectors; ++v)
        if (v * VF < outputs) store_upto(row + v * VF, y.v[r * kPanelVectors + v], min64(VF, outputs - v * VF));
    }
  }
}

template <class T>
inline void store_sums(const VectorProblem<T>& p, int64_t n, int64_t outputs, const float* sums) {
  const int64_t stride = row_columns<T>(p.n);
  const auto activated = [&](const auto& f) { store_activated(sums, p.num_rows, n, outputs, f, stride, p.packed_out); };
  if (p.activation == Activation::gelu_tanh) return activated([](auto x) { return gelu_tanh<T>(x); });
  if (p.activation == Activation::gelu_exact) return activated([](auto x) { return gelu_exact<T>(x); });
  for (int64_t t = 0; t < p.num_rows; ++t)
    for (int64_t c = 0; c < outputs; c += VF)
      store_upto(p.out + t * p.n + n + c, load(sums + t * kVectorPanel + c), min64(VF, outputs - c));
}

// Memory of a thread: sums of all rows, and of a few more, for store_activated reads whole batches; a panel's bias; a chunk.
template <class T>
struct VectorMemory {
  float *sums, *bias;
  T* chunk;
  T* more;  // as many elements as asked for

  explicit VectorMemory(int64_t num_rows, int64_t elements = 0) {
    constexpr int64_t kSize = sizeof(T), kChunk = kChunkElements<T> * kSize;
    const int64_t sums_bytes = (min64(num_rows, kVectorRows) + kBatch + 1) * kVectorPanel * 4;
    char* memory = static_cast<char*>(scratch(sums_bytes + kChunk + elements * kSize));
    sums = reinterpret_cast<float*>(memory);
    bias = sums + sums_bytes / 4 - kVectorPanel;
    chunk = reinterpret_cast<T*>(memory + sums_bytes);
    more = reinterpret_cast<T*>(memory + sums_bytes + kChunk);
  }
};

// The weights of a panel: rows of W that are taken chunk by chunk, or what was taken before. Either says where a chunk is
// and, tile by tile, asks for the one after it; what a tile of products asks for on its way lies from fetch() on.
template <class Products, class T>
class TakenPanel {
 public:
  // `then`: rows that are read after these, as many and as far apart, or null.
  TakenPanel(const T* w, int64_t stride, int64_t k, int64_t outputs, const T* then, T* chunk)
      : w_(w), then_(then), stride_(stride), k_(k), outputs_(outputs), chunk_(chunk) {}

  const T* chunk(int64_t begin, int64_t columns, int64_t tiles) {
    constexpr int64_t kSize = sizeof(T), kChunk = kChunkColumns<T>;
    Products::take(w_ + begin, stride_, outputs_, columns, chunk_);
    const int64_t later = begin + kChunk, left = later < k_ ? k_ - later : k_;
    const T* next = later < k_ ? w_ + later : then_;
    ahead_ = next ? RowsAhead(next, stride_ * kSize, min64(kChunk, left) * kSize, outputs_, tiles) : RowsAhead();
    return chunk_;
  }
  Ahead fetch() {
    ahead_.fetch();
    return {reinterpret_cast<const char*>(chunk_), 0};
  }

 private:
  const T *w_, *then_;
  int64_t stride_, k_, outputs_;
  T* chunk_;
  RowsAhead ahead_;
};

template <class Products, class T>
class StoredPanel {
 public:
  // `then`: the panel after it.
  StoredPanel(const T* panel, const T* then, int64_t k)
      : panel_(reinterpret_cast<const char*>(panel)), then_(reinterpret_cast<const char*>(then)),
        bytes_(kVectorPanel * row_columns<T>(k) * kSize) {}

  const T* chunk(int64_t begin, int64_t columns, int64_t tiles) {
    const int64_t at = begin / kChunkColumns<T> * kChunkBytes;
    ahead_ = at + kChunkBytes;
    steps_ = (columns + kStepColumns - 1) / kStepColumns;
    step_ = min64(64, (kStepBytes + tiles - 1) / tiles);
    return reinterpret_cast<const T*>(panel_ + at);
  }
  // As fast as products read, a whole chunk ahead of them.
  Ahead fetch() {
    const char* at = ahead_ < bytes_ ? panel_ + ahead_ : then_ + (ahead_ - bytes_);
    ahead_ += steps_ * step_;
    return {at, step_};
  }

 private:
  static constexpr int64_t kSize = sizeof(T), kChunkBytes = kChunkElements<T> * kSize;
  static constexpr int64_t kStepColumns = kChunkColumns<T> / Products::kSteps;
  static constexpr int64_t kStepBytes = kVectorPanel * kStepColumns * kSize;
  const char *panel_, *then_;
  int64_t bytes_, ahead_ = 0, steps_ = 0, step_ = 0;
};

// Outputs [n, n + outputs), at most a panel, for all rows of x.
template <class Products, class T, class Weights>
inline void vector_panel(const VectorProblem<T>& p, Weights weights, int64_t n, int64_t outputs,
                         const VectorMemory<T>& memory) {
  const int64_t stride = row_columns<T>(p.k), tiles = (p.num_rows + kRowsOfX<T> - 1) / kRowsOfX<T>;
  for (int64_t i = 0; i < kVectorPanel; ++i) memory.bias[i] = p.bias && i < outputs ? widen(p.bias[n + i]) : 0.0f;
  float* results = memory.sums;
  int64_t results_stride = kVectorPanel;
  if constexpr (std::is_same_v<T, float>)
    if (p.activation == Activation::none && outputs == kVectorPanel) results = p.out + n, results_stride = p.n;
  for (int64_t begin = 0; begin < p.k; begin += kChunkColumns<T>) {
    const int64_t columns = min64(kChunkColumns<T>, p.k - begin);
    const bool ends = begin + columns == p.k;
    const T* chunk = weights.chunk(begin, columns, tiles);
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t row = i * p.num_rows / tiles, rows = (i + 1) * p.num_rows / tiles - row;
      const T* x = p.x + row * stride;
      float* sums = memory.sums + row * kVectorPanel;
      const Sums s{begin == 0 ? nullptr : sums, ends ? results + row * results_stride : sums,
                   ends ? results_stride : kVectorPanel, ends && p.bias ? memory.bias : nullptr};
      const RowsOfX<T> rows_of_x{x + begin, chunk_sums(x, p.k, begin), stride};
      multiply_rows<Products, kRowsOfX<T>>(rows, outputs, chunk, rows_of_x, columns, s, weights.fetch());
    }
  }
  if (results == memory.sums) store_sums(p, n, outputs, memory.sums);
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

// panel(problem, branch, n, outputs, next) for everything that this thread claims; `next`: the first output of the panel
// after it if threads are equally fast, or past the last one. Where panels are few, rows are shared out as well.
template <class T, class Panel>
inline void claim_vector_panels(const LinearWideArgs& a, int count, const Panel& panel) {
  const auto claim = [&] { return a.next->fetch_add(1, std::memory_order_relaxed); };
  const int64_t units = (a.n + kVectorPanel - 1) / kVectorPanel, parts = (2 * count + units - 1) / units;
  int64_t unit = claim(), first = 0;
  for (int64_t branch = 0; branch < 2; ++branch) {
    const VectorProblem<T> whole = vector_branch<T>(a, branch);
    const int64_t together = min64(kVectorRows, max64(kVectorPanel, (whole.num_rows + parts - 1) / parts));
    for (int64_t row = 0; row < whole.num_rows; row += together, first += units) {
      VectorProblem<T> p = whole;
      p.x += row * row_columns<T>(p.k);
      p.out += row * p.n;
      if (p.packed_out) p.packed_out += row * row_columns<T>(p.n);
      p.num_rows = min64(together, p.num_rows - row);
      for (; unit < first + units; unit = claim()) {
        const int64_t n = (unit - first) * kVectorPanel;
        panel(p, branch, n, min64(kVectorPanel, a.n - n), n + count * kVectorPanel);
      }
    }
  }
}

// pack(first row, rows, packed rows) for up to 16 rows at a time of this thread's share of x.
template <class T, class Pack>
inline void pack_for_vectors(const LinearWideArgs& a, int index, int count, const Pack& pack) {
  constexpr int64_t kRows = 16;
  const int64_t text = (a.split + kRows - 1) / kRows, blocks = text + (a.num_rows - a.split + kRows - 1) / kRows;
  const Range range = partition(blocks, 1, index, count);
  for (int64_t block = range.begin; block < range.end; ++block) {
    const int64_t row = block < text ? block * kRows : a.split + (block - text) * kRows;
    pack(static_cast<const T*>(a.x) + row * a.x_stride, min64(kRows, (block < text ? a.split : a.num_rows) - row),
         static_cast<T*>(a.workspace) + block * kRows * row_columns<T>(a.k));
  }
}

template <class T>
inline void pack_for_vectors(const LinearWideArgs& a, int index, int count) {
  pack_for_vectors<T>(a, index, count, [&](const T* x, int64_t rows, T* to) {
    for (int64_t t = 0; t < rows; ++t, x += a.x_stride, to += row_columns<T>(a.k)) {
      std::memcpy(to, x, a.k * sizeof(T));
      if (a.k % 2) to[a.k] = T{};
    }
  });
}

template <class Products, class T>
inline void wide_in_vectors(const LinearWideArgs& a, int count) {
  const VectorMemory<T> memory(max64(a.split, a.num_rows - a.split));
  claim_vector_panels<T>(a, count, [&](const VectorProblem<T>& p, int64_t, int64_t n, int64_t outputs, int64_t next) {
    if (a.w_stride == kInPanels) {
      const auto panel = [&](int64_t first) { return p.w + first * row_columns<T>(p.k); };
      const T* then = next < p.n ? panel(next) : a.then ? static_cast<const T*>(a.then) : panel(n);
      return vector_panel<Products>(p, StoredPanel<Products, T>(panel(n), then, p.k), n, outputs, memory);
    }
    const T* then = next + outputs <= p.n ? p.w + next * p.w_stride : nullptr;
    const TakenPanel<Products, T> rows(p.w + n * p.w_stride, p.w_stride, p.k, outputs, then, memory.chunk);
    vector_panel<Products>(p, rows, n, outputs, memory);
  });
}

// f(rows of W, their outputs, columns of k, chunk) for every chunk of this thread's share of the panels.
template <class T, class F>
inline void for_chunks(const WeightPanelsArgs& a, int index, int count, const F& f) {
  const Range range = partition((a.n + kVectorPanel - 1) / kVectorPanel, 1, index, count);
  for (int64_t n = range.begin * kVectorPanel; n < range.end * kVectorPanel; n += kVectorPanel) {
    T* chunk = static_cast<T*>(a.panels) + n * row_columns<T>(a.k);
    for (int64_t begin = 0; begin < a.k; begin += kChunkColumns<T>, chunk += kChunkElements<T>)
      f(static_cast<T*>(a.weight) + n * a.w_stride + begin, min64(kVectorPanel, a.n - n),
        min64(kChunkColumns<T>, a.k - begin), chunk);
  }
}

template <class Products, class T>
inline void to_panels(const WeightPanelsArgs& a, int index, int count) {
  for_chunks<T>(a, index, count, [&](const T* w, int64_t outputs, int64_t columns, T* chunk) {
    std::memset(chunk, 0, row_columns<T>(columns) * kVectorPanel * sizeof(T));
    Products::take(w, a.w_stride, outputs, columns, chunk);
  });
}

template <class Products, class T>
inline void from_panels(const WeightPanelsArgs& a, int index, int count) {
  constexpr int64_t kWord = kWordColumns<T>;
  for_chunks<T>(a, index, count, [&](T* w, int64_t outputs, int64_t columns, const T* chunk) {
    for (int64_t r = 0; r < outputs; ++r)
      for (int64_t c = 0; c < columns; ++c)
        w[r * a.w_stride + c] =
            Products::taken(chunk, columns, r, chunk[c / kWord * kWordElements<T> + r * kWord + c % kWord]);
  });
}

}  // namespace antiphon::ANTIPHON_ISA
