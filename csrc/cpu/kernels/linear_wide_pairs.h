// Wide float32 linear whose products go in pairs, for processors that add beside multiplying; included by
// linear_wide.cpp.
//
// For two columns a, b of x and theirs v, w of W (Winograd, "A new algorithm for inner product", 1968):
//     (a + w) (b + v) = a v + b w + a b + v w,
// one product and two additions in place of two products: with two of three vectors of outputs in pairs both ports are
// busy, 1.5 times what the multipliers alone would do (2.5 to 2.6 of 3 products a cycle on Zen 5). The sums of a b and of
// v w, of a row of x and of W, are what a sum begins with, negative.
//
// a + w rounds. For that to cost no accuracy both are of one size: every chunk of a row, of x as of W, is scaled by a power
// of two to absolute values of about 1, and has a sum of its own. Errors are those of one sum over k in order at 192
// columns, less than half at 1280; where x lies far from zero up to 2.5 times, and as large.
#pragma once

#include <limits>

#include "linear_wide_vector.h"

namespace antiphon::ANTIPHON_ISA {

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

// A chunk of up to VF rows of x, scaled: put(row, column, vector) takes what part(row, column) was; what scales each row's
// results back, and its sum of a b.
template <class Part, class Put>
inline void scale_rows(int64_t rows, int64_t columns, const Part& part, const Put& put, float (&back)[VF],
                       float (&products)[VF]) {
  vf of_rows[VF] = {};
  for (int64_t r = 0; r < rows; ++r) {
    vf size = set1(0.0f);
    for (int64_t c = 0; c < columns; c += VF) size = add(size, _mm512_abs_ps(part(r, c)));
    of_rows[r] = size;
  }
  const Unit unit(mul(hsums(of_rows), set1(1.0f / static_cast<float>(columns))));
  alignas(64) float away[VF];
  store(away, unit.away);
  store(back, unit.back);
  for (int64_t r = 0; r < rows; ++r) {
    const vf of_row = set1(away[r]);
    vf sum = set1(0.0f);
    for (int64_t c = 0; c < columns; c += VF) {
      const vf scaled = mul(part(r, c), of_row);
      put(r, c, scaled);
      sum = _mm512_mask3_fmadd_ps(scaled, _mm512_movehdup_ps(scaled), sum, 0x5555);
    }
    of_rows[r] = sum;
  }
  for (int64_t r = rows; r < VF; ++r) of_rows[r] = set1(0.0f);
  store(products, hsums(of_rows));
}

// Up to VF rows of x, `stride` apart, scaled chunk by chunk, zero from k to whole words; x and `to` may be the same rows.
inline void pack_pairs(const float* x, int64_t stride, int64_t rows, int64_t k, float* to) {
  const int64_t to_stride = row_columns<float>(k);
  for (int64_t begin = 0; begin < k; begin += kWideChunk) {
    const int64_t columns = min64(kWideChunk, k - begin), end = (columns + 1) / 2 * 2;
    alignas(64) float back[VF], products[VF];
    const float* from = x + begin;
    float* out = to + begin;
    if (columns % VF == 0)
      scale_rows(rows, columns, [=](int64_t r, int64_t c) { return load(from + r * stride + c); },
                 [=](int64_t r, int64_t c, vf v) { store(out + r * to_stride + c, v); }, back, products);
    else
      scale_rows(rows, columns,
                 [=](int64_t r, int64_t c) { return load_upto(from + r * stride + c, min64(VF, columns - c)); },
                 [=](int64_t r, int64_t c, vf v) { store_upto(out + r * to_stride + c, v, min64(VF, end - c)); }, back,
                 products);
    for (int64_t r = 0; r < rows; ++r) {
      float* sums = chunk_sums(to + r * to_stride, k, begin);
      sums[0] = back[r];
      sums[1] = products[r];
    }
  }
}

inline Batch<kPanelVectors> absolute(const Batch<kPanelVectors>& x) {
  return batch<kPanelVectors>([&](int v) { return _mm512_abs_ps(x.v[v]); });
}

// VectorProducts in pairs. A packed row has for every chunk what scales results back and the sum of a b; a chunk of W the
// same behind its words, whole pairs of them: [kVectorPanel] and, of v w, [kVectorPanel].
struct PairProducts {
  static void take(const float* w, int64_t stride, int64_t outputs, int64_t columns, float* chunk) {
    const int64_t end = (columns + 1) / 2 * 2, held = (outputs + VF - 1) / VF * VF;
    take_chunk(w, stride, outputs, columns, chunk);
    for (int64_t c = 0; c < end; ++c)
      for (int64_t r = c < columns ? held : 0; r < kVectorPanel; r += VF) store(chunk + c * kVectorPanel + r, set1(0.0f));
    using Outputs = Batch<kPanelVectors>;
    const auto at = [&](int64_t c) {
      return batch<kPanelVectors>([&](int v) { return load(chunk + c * kVectorPanel + v * VF); });
    };
    const auto put = [&](int64_t c, const Outputs& x) {
      for (int v = 0; v < kPanelVectors; ++v) store(chunk + c * kVectorPanel + v * VF, x.v[v]);
    };
    Outputs even = Splat<Outputs>::of(0.0f), odd = even, products = even, away, back;
    for (int64_t c = 0; c < end; c += 2) {
      even = add(even, absolute(at(c)));
      odd = add(odd, absolute(at(c + 1)));
    }
    const Outputs means = mul(add(even, odd), Splat<Outputs>::of(1.0f / static_cast<float>(columns)));
    for (int v = 0; v < kPanelVectors; ++v) {
      const Unit unit(means.v[v]);
      away.v[v] = unit.away;
      back.v[v] = unit.back;
    }
    for (int64_t c = 0; c < end; c += 2) {
      const Outputs of_v = mul(at(c), away), of_w = mul(at(c + 1), away);
      put(c, of_v);
      put(c + 1, of_w);
      products = fmadd(of_v, of_w, products);
    }
    put(end, back);
    put(end + 1, products);
  }

  static float taken(const float* chunk, int64_t columns, int64_t r, float stored) {
    return stored * chunk[(columns + 1) / 2 * 2 * kVectorPanel + r];
  }

  static constexpr int64_t kSteps = kWideChunk / 2;
  template <int R, int V>
  static void multiply(const float* chunk, const RowsOfX<float>& x, int64_t columns, const Sums& s, Ahead next) {
    constexpr int P = V == 1 ? 0 : V - 1;  // vectors in pairs
    const int64_t end = (columns + 1) / 2 * 2;
    const float* back = chunk + end * kVectorPanel;
    vf acc[R][V];
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v)
        acc[r][v] = v < P ? sub(set1(-x.sums[r * x.stride + 1]), load(back + kVectorPanel + v * VF)) : set1(0.0f);
    for (int64_t c = 0; c < end; c += 2, chunk += 2 * kVectorPanel, next.at += next.step) {
      prefetch(next.at);
      vf of_v[V], of_w[V];
      for (int v = 0; v < V; ++v) {
        of_v[v] = load(chunk + v * VF);
        of_w[v] = load(chunk + kVectorPanel + v * VF);
      }
      for (int r = 0; r < R; ++r) {
        const float* row = x.columns + r * x.stride + c;
        const vf a = set1(row[0]), b = set1(row[1]);
        for (int v = 0; v < P; ++v) acc[r][v] = fmadd(add(a, of_w[v]), add(b, of_v[v]), acc[r][v]);
        for (int v = P; v < V; ++v) acc[r][v] = fmadd(a, of_v[v], acc[r][v]);
        for (int v = P; v < V; ++v) acc[r][v] = fmadd(b, of_w[v], acc[r][v]);
      }
    }
    for (int r = 0; r < R; ++r) {
      const vf of_row = set1(x.sums[r * x.stride]);
      for (int v = 0; v < V; ++v) acc[r][v] = fmadd(acc[r][v], mul(of_row, load(back + v * VF)), s.before(r, v));
    }
    s.put(acc);
  }
};

inline void wide_in_pairs(const LinearWideArgs& a, int index, int count) {
  wide_in_vectors<PairProducts, float>(a, count);
  if (!a.packed_out) return;
  job_barrier(count);  // a chunk is several panels
  const Range range = partition(a.num_rows, VF, index, count);
  float* rows = static_cast<float*>(a.packed_out);
  const int64_t stride = row_columns<float>(a.n);
  for (int64_t row = range.begin; row < range.end; row += VF)
    pack_pairs(rows + row * stride, stride, min64(VF, range.end - row), a.n, rows + row * stride);
}

}  // namespace antiphon::ANTIPHON_ISA
