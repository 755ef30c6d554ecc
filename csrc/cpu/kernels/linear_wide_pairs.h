// Wide float32 linear whose products go in pairs, for processors that add beside multiplying; included by
// linear_wide.cpp.
//
// For two columns a, b of x and theirs v, w of W (Winograd, "A new algorithm for inner product", 1968):
//     (a + w) (b + v) = a v + b w + a b + v w,
// one product and two additions in place of two products: five of eight rows of W in pairs are 1.3 times what the
// multipliers alone would do (Zen 5, in registers). The sums of a b and of v w, of a row of x and of W, are what a sum
// begins with, negative.
//
// a + w rounds. For that to cost no accuracy both are of one size: every chunk of a row, of x as of W, is scaled by a power
// of two to absolute values of about 1, and has a sum of its own. Errors are those of one sum over k in order at 192
// columns, less than half at 1280; where x lies far from zero up to 2.5 times, and as large.
#pragma once

#include <limits>

#include "linear_wide_vector.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int kRowsInPairs = 5;  // of eight rows of W
constexpr int kPairBlocks = 2;   // blocks of x at a time

// Powers of two nearest to mean absolute values: factors away from them and back. 1 where a number is none; of zeros
// nothing comes back, for their products are not rounded to zero.
struct Unit {
  vf away, back;

  explicit Unit(vf mean) {
    constexpr float kMost = 120.0f;  // so that both are numbers
    const __mmask16 some = _mm512_cmp_ps_mask(mean, set1(0.0f), _CMP_GT_OQ) &
                           _mm512_cmp_ps_mask(mean, set1(std::numeric_limits<float>::max()), _CMP_LE_OQ);
    const vf exponent = max(min(_mm512_maskz_getexp_ps(some, mul(mean, set1(1.41421356f))), set1(kMost)), set1(-kMost));
    away = _mm512_scalef_ps(set1(1.0f), sub(set1(0.0f), exponent));
    back = _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(mean, set1(0.0f), _CMP_NEQ_UQ), set1(1.0f), exponent);
  }
};

// Lane r of the result is the sum of the lanes of v[r], which are lost.
inline vf sums_of_lanes(vf (&v)[VF]) {
  transpose(v);
  for (int64_t n = VF / 2; n > 0; n /= 2)
    for (int64_t i = 0; i < n; ++i) v[i] = add(v[i], v[i + n]);
  return v[0];
}

// Behind the words of a block of x, for every chunk: `back` of its rows, and their sums of a b.
inline float* chunk_sums(float* block, int64_t k, int64_t column) {
  return block + VF * (word_columns(k) + column / kWideChunk * 2);
}
inline const float* chunk_sums(const float* block, int64_t k, int64_t column) {
  return chunk_sums(const_cast<float*>(block), k, column);
}

// Scales the words of a block of x in place.
inline void prepare_pairs(float* block, int64_t k) {
  for (int64_t begin = 0; begin < k; begin += kWideChunk) {
    const int64_t end = min64(begin + kWideChunk, k);
    vf sizes[2] = {set1(0.0f), set1(0.0f)}, products = set1(0.0f), before = set1(0.0f);
    for (int64_t i = begin; i < end; ++i) sizes[i % 2] = add(sizes[i % 2], _mm512_abs_ps(load(block + i * VF)));
    const Unit unit(mul(add(sizes[0], sizes[1]), set1(1.0f / static_cast<float>(end - begin))));
    for (int64_t i = begin; i < end; ++i) {
      const vf x = mul(load(block + i * VF), unit.away);
      store(block + i * VF, x);
      if (i % 2) products = fmadd(before, x, products);
      before = x;
    }
    float* sums = chunk_sums(block, k, begin);
    store(sums, unit.back);
    store(sums + VF, products);
  }
}

// A chunk of a panel of W: scaled rows, zero from `columns` to the next whole vector; what scales their results back, and
// their sums of v w.
struct PairPanel {
  alignas(64) float w[kVectorPanel][kWideChunk];
  alignas(64) float back[kVectorPanel], products[kVectorPanel];

  void take(const float* from, int64_t stride, int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; r += VF) {
      const float* first = from + r * stride;
      const int64_t held = min64(VF, rows - r);
      columns % VF
          ? take([=](int64_t i, int64_t c) { return load_upto(first + i * stride + c, min64(VF, columns - c)); }, r, held,
                 columns)
          : take([=](int64_t i, int64_t c) { return load(first + i * stride + c); }, r, held, columns);
    }
  }

 private:
  // part(i, c): columns from c on of row first + i.
  template <class Part>
  void take(const Part& part, int64_t first, int64_t rows, int64_t columns) {
    vf of_rows[VF] = {};
    for (int64_t r = 0; r < rows; ++r) {
      vf size = set1(0.0f);
      for (int64_t i = 0; i < columns; i += VF) size = add(size, _mm512_abs_ps(part(r, i)));
      of_rows[r] = size;
    }
    const Unit unit(mul(sums_of_lanes(of_rows), set1(1.0f / static_cast<float>(columns))));
    alignas(64) float away[VF];
    store(away, unit.away);
    store(back + first, unit.back);
    for (int64_t r = 0; r < rows; ++r) {
      const vf of_row = set1(away[r]);
      vf sum = set1(0.0f);
      for (int64_t i = 0; i < columns; i += VF) {
        const vf v = mul(part(r, i), of_row);
        store(w[first + r] + i, v);
        sum = _mm512_mask3_fmadd_ps(v, _mm512_movehdup_ps(v), sum, 0x5555);
      }
      of_rows[r] = sum;
    }
    for (int64_t r = rows; r < VF; ++r) of_rows[r] = set1(0.0f);
    store(products + first, sums_of_lanes(of_rows));
  }
};

// What a panel meets: a chunk of blocks of x, `stride` apart, and of the blocks after them, to be asked for.
struct PairBlocks {
  const float *x, *sums, *next;
  int64_t stride, columns;
};

// sums[block][row of W][VF] of rows [r, r + kRows) of a panel times kBlocks blocks of x += over a chunk, of those rows the
// first kInPairs in pairs; asks for the words of one block from `next` on.
template <int kRows, int kInPairs, int kBlocks>
inline void multiply_pairs(const PairPanel& panel, int64_t r, const PairBlocks& blocks, const float* next, float* sums) {
  const float *w = panel.w[r], *x = blocks.x;
  vf acc[kRows][kBlocks];
  for (int i = 0; i < kRows; ++i)
    for (int b = 0; b < kBlocks; ++b)
      acc[i][b] = i < kInPairs ? sub(set1(-panel.products[r + i]), load(blocks.sums + b * blocks.stride + VF)) : set1(0.0f);
  for (int64_t c = 0; c < blocks.columns; c += 2, x += 2 * VF, next += VF) {
    prefetch(next);
    vf of_a[kBlocks], of_b[kBlocks];
    for (int b = 0; b < kBlocks; ++b) {
      of_a[b] = load(x + b * blocks.stride);
      of_b[b] = load(x + b * blocks.stride + VF);
    }
    for (int i = 0; i < kRows; ++i) {
      const vf of_v = set1(w[i * kWideChunk + c]), of_w = set1(w[i * kWideChunk + c + 1]);
      if (i < kInPairs) {
        for (int b = 0; b < kBlocks; ++b) acc[i][b] = fmadd(add(of_a[b], of_w), add(of_b[b], of_v), acc[i][b]);
      } else {
        for (int b = 0; b < kBlocks; ++b) acc[i][b] = fmadd(of_a[b], of_v, acc[i][b]);
        for (int b = 0; b < kBlocks; ++b) acc[i][b] = fmadd(of_b[b], of_w, acc[i][b]);
      }
    }
  }
  vf back[kBlocks];
  for (int b = 0; b < kBlocks; ++b) back[b] = load(blocks.sums + b * blocks.stride);
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
    float* to = sums + (r + i) * VF;
#pragma GCC unroll 2
    for (int b = 0; b < kBlocks; ++b, to += kVectorPanel * VF)
      store(to, fmadd(acc[i][b], mul(back[b], set1(panel.back[r + i])), load(to)));
  }
}

// multiply_pairs for `rows` rows of a panel.
template <int kBlocks>
inline void multiply_pair_panel(const PairPanel& panel, int64_t rows, const PairBlocks& blocks, RowsAhead& ahead,
                                float* sums) {
  int64_t r = 0;
  for (; r + kRowsOfW <= rows; r += kRowsOfW) {
    ahead.fetch();
    const int64_t part = r / kRowsOfW;  // each asks for half of a block
    const float* next = blocks.next + part / 2 * blocks.stride + part % 2 * blocks.columns / 2 * VF;
    multiply_pairs<kRowsOfW, kRowsInPairs, kBlocks>(panel, r, blocks, next, sums);
  }
  for (; r < rows; ++r) multiply_pairs<1, 0, kBlocks>(panel, r, blocks, blocks.next, sums);
}

// vector_panel in pairs.
inline void pair_panel(const VectorProblem<float>& p, const float* w, int64_t stride, int64_t n, int64_t columns,
                       const float* then, PairPanel& panel, float* sums) {
  constexpr int64_t kSize = sizeof(float);
  const int64_t blocks = p.blocks(), steps = (blocks + kPairBlocks - 1) / kPairBlocks * (kVectorPanel / kRowsOfW);
  std::memset(sums, 0, vector_panel_bytes(p.num_rows));
  for (int64_t begin = 0; begin < p.k; begin += kWideChunk) {
    const int64_t length = min64(kWideChunk, p.k - begin), later = begin + kWideChunk;
    panel.take(w + begin, stride, columns, length);
    RowsAhead ahead;
    if (const float* next = later < p.k ? w + later : then)
      ahead = {next, stride * kSize, min64(kWideChunk, later < p.k ? p.k - later : p.k) * kSize, columns, steps};
    for (int64_t b = 0; b < blocks; b += kPairBlocks) {
      const float *block = p.x + b * p.block(), *x = block + begin * VF;
      const float* next = b + 2 * kPairBlocks <= blocks ? x + kPairBlocks * p.block() : x;
      const auto run = b + 1 < blocks ? multiply_pair_panel<2> : multiply_pair_panel<1>;
      run(panel, columns, {x, chunk_sums(block, p.k, begin), next, p.block(), (length + 1) / 2 * 2}, ahead,
          sums + b * kVectorPanel * VF);
    }
  }
  for (int64_t b = 0; b < blocks; ++b) store_block(p, b, n, columns, sums + b * kVectorPanel * VF);
}

inline void pack_for_pairs(const LinearWideArgs& a, int index, int count) {
  pack_for_vectors<float>(a, index, count, [&](float* block) { prepare_pairs(block, a.k); });
}

inline void wide_in_pairs(const LinearWideArgs& a, int index, int count) {
  const int64_t bytes = vector_panel_bytes(max64(a.split, a.num_rows - a.split));
  char* memory = static_cast<char*>(scratch(bytes + sizeof(PairPanel)));
  PairPanel& panel = *reinterpret_cast<PairPanel*>(memory + bytes);
  claim_vector_panels<float>(a, count, [&](const VectorProblem<float>& p, int64_t, int64_t n, int64_t columns,
                                           int64_t next) {
    pair_panel(p, p.w + n * p.w_stride, p.w_stride, n, columns,
               next + columns <= p.n ? p.w + next * p.w_stride : nullptr, panel, reinterpret_cast<float*>(memory));
  });
  if (!a.packed_out) return;
  job_barrier(count);  // a chunk is several panels
  const Range range = partition((a.num_rows + VF - 1) / VF, 1, index, count);
  for (int64_t block = range.begin; block < range.end; ++block)
    prepare_pairs(static_cast<float*>(a.packed_out) + block * VF * row_columns<float>(a.n), a.n);
}

}  // namespace antiphon::ANTIPHON_ISA
