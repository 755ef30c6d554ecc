// Wide linear on AMX tiles; included by linear_wide.cpp where the instruction set has them.
//
// 32 rows of W meet 32 rows of x in four accumulator tiles that run over all of k. In bfloat16 the tiles of W come
// straight from its row-major memory, and every output is the same sum in the same order as in linear_amx.h, so a row has
// the same result in a prompt and in a decode step. float32 operands are split into three bfloat16 parts each,
// x = x0 + x1 + x2 to 24 bits; the six products of parts p + q <= 2 are added, smallest first, and those left out are
// below 2^-24 of the result's terms.
#pragma once

#include <type_traits>

#include "tiles.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int64_t kDepth = 32;                       // columns of a tile
constexpr int64_t kTileElements = kTileRows * kDepth;

template <class T>
constexpr int64_t kParts = std::is_same_v<T, float> ? 3 : 1;

inline int64_t wide_blocks(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }

// Of 16 rows of x in the workspace, [k / 32][parts][16 pairs of columns][16 rows][2].
template <class T>
inline int64_t block_elements(int64_t k) { return kParts<T> * kTileRows * k; }

inline void transpose_words(__m512i (&v)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      v[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + 2 + j]);
      v[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + 2 + j]);
    }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(v[i], v[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_i32x4(v[i], v[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_i32x4(v[8 + i], v[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(v[8 + i], v[12 + i], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
    v[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
    v[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
    v[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
  }
}

// 32 columns of one row as parts in the order of columns.
inline void split_columns(const bf16* x, __m512i (&parts)[1]) { parts[0] = _mm512_loadu_si512(x); }
inline void split_columns(const float* x, __m512i (&parts)[3]) {
  vf low = load(x), high = load(x + 16);
  for (int p = 0; p < 3; ++p) {
    const __m256i a = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(low));
    const __m256i b = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(high));
    parts[p] = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
    // What is infinite or no number has no rest.
    low = _mm512_maskz_sub_ps(_mm512_fpclass_ps_mask(from_bf16(a), 0x99) ^ 0xffff, low, from_bf16(a));
    high = _mm512_maskz_sub_ps(_mm512_fpclass_ps_mask(from_bf16(b), 0x99) ^ 0xffff, high, from_bf16(b));
  }
}

template <class T>
inline void pack_block(const T* x, int64_t stride, int64_t rows, int64_t k, bf16* out) {
  constexpr int64_t kCount = kParts<T>;
  for (int64_t i = 0; i < k; i += kDepth, out += kCount * kTileElements) {
    __m512i words[kCount][16];
    for (int64_t r = 0; r < kTileRows; ++r) {
      __m512i parts[kCount];
      for (auto& part : parts) part = _mm512_setzero_si512();
      if (r < rows) split_columns(x + r * stride + i, parts);
      for (int64_t p = 0; p < kCount; ++p) words[p][r] = parts[p];
    }
    for (int64_t p = 0; p < kCount; ++p) {
      transpose_words(words[p]);
      for (int64_t j = 0; j < 16; ++j) _mm512_storeu_si512(out + p * kTileElements + j * kDepth, words[p][j]);
    }
  }
}

template <class T>
struct WideProblem {
  const bf16* x;  // blocks of 16 rows
  const T* w;     // [n, k]
  const T* bias;  // or null
  T* out;         // [num_rows, n]
  int64_t num_rows, n, k;
};

// 32 rows of W as tiles: part p of block b at depth i is at tiles + i * step + p * part + b * block, rows `stride` bytes
// apart. `next`, if not null, are the 32 rows of the original W that follow, to be fetched.
struct WideRows {
  const bf16* tiles;
  int64_t step, part, block, stride;
  const char* next;
  int64_t next_stride;
};

// The rows of W as they lie in memory, for bfloat16 and a whole block.
inline WideRows rows_in_place(const bf16* w, int64_t k) {
  return {w, kDepth, 0, kTileRows * k, 2 * k, reinterpret_cast<const char*>(w + 2 * kTileRows * k), 2 * k};
}

// A copy in parts: [k / 32][parts][2][16][32], zero past `rows`.
template <class T>
inline WideRows rows_in_parts(const T* w, int64_t rows, int64_t k, bf16* memory) {
  constexpr int64_t kCount = kParts<T>;
  for (int64_t r = 0; r < 2 * kTileRows; ++r)
    for (int64_t i = 0; i < k; i += kDepth) {
      __m512i parts[kCount];
      for (auto& part : parts) part = _mm512_setzero_si512();
      if (r < rows) split_columns(w + r * k + i, parts);
      for (int64_t p = 0; p < kCount; ++p)
        _mm512_storeu_si512(memory + (i / kDepth * kCount + p) * 2 * kTileElements + r * kDepth, parts[p]);
    }
  return {memory, 2 * kCount * kTileElements, 2 * kTileElements, kTileElements, 2 * kDepth, nullptr, 0};
}

// Rows of the next block that pass `pass` of `passes` fetches to the second-level cache.
inline void fetch_next(const WideRows& w, int64_t pass, int64_t passes, int64_t depth) {
  if (!w.next) return;
  const int64_t end = (pass + 1) * 2 * kTileRows / passes;
  for (int64_t r = pass * 2 * kTileRows / passes; r < end; ++r)
    _mm_prefetch(w.next + r * w.next_stride + depth * kTileBytes, _MM_HINT_T1);
}

// sums[x block][W block][16][16] += 32 rows of W times one or two blocks of x, over depths [begin, end) of k. Fewer loads
// than products: from one pair of parts to the next only one side changes.
template <class T, int kBlocks>
inline void wide_tiles(const WideRows& w, const bf16* x, int64_t k, int64_t begin, int64_t end, int64_t pass,
                       int64_t passes, float* sums) {
  constexpr int64_t kCount = kParts<T>;
  constexpr int kPairs = kCount == 1 ? 1 : 6;
  constexpr int kPartOfX[] = {0, 0, 1, 1, 2, 0}, kPartOfW[] = {2, 1, 1, 0, 0, 0};
  const int64_t other = kCount * kTileRows * k;  // from one block of x to the next
  _tile_loadd(0, sums, 64);
  _tile_loadd(1, sums + 256, 64);
  if constexpr (kBlocks == 2) {
    _tile_loadd(2, sums + 2 * 256, 64);
    _tile_loadd(3, sums + 3 * 256, 64);
  }
  for (int64_t i = begin; i < end; ++i) {
    const bf16* xi = x + i * kCount * kTileElements;
    const bf16* wi = w.tiles + i * w.step;
    fetch_next(w, pass, passes, i);
#pragma GCC unroll 6
    for (int j = 0; j < kPairs; ++j) {
      const int p = kCount == 1 ? 0 : kPartOfX[j], q = kCount == 1 ? 0 : kPartOfW[j];
      if (j == 0 || kPartOfW[j] != kPartOfW[j - 1]) {
        _tile_loadd(4, wi + q * w.part, w.stride);
        _tile_loadd(5, wi + q * w.part + w.block, w.stride);
      }
      if (j == 0 || kPartOfX[j] != kPartOfX[j - 1]) {
        _tile_loadd(6, xi + p * kTileElements, 64);
        if constexpr (kBlocks == 2) _tile_loadd(7, xi + p * kTileElements + other, 64);
      }
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 5, 6);
      if constexpr (kBlocks == 2) {
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 256, 64);
  if constexpr (kBlocks == 2) {
    _tile_stored(2, sums + 2 * 256, 64);
    _tile_stored(3, sums + 3 * 256, 64);
  }
}

// out[t][0, columns) = sums[.., t] + bias
template <class T>
inline void store_block(const float* sums, const T* bias, int64_t rows, int64_t columns, T* out, int64_t out_stride) {
  __m512i v[16];
  for (int r = 0; r < 16; ++r) v[r] = _mm512_load_si512(sums + 16 * r);
  transpose_words(v);
  const vf shift = bias ? load_upto(bias, columns) : set1(0.0f);
  for (int64_t t = 0; t < rows; ++t)
    store_upto(out + t * out_stride, add(_mm512_castsi512_ps(v[t]), shift), columns);
}

// Columns [n, n + columns) of the result, columns <= 32, for all rows of x. k is walked in chunks of which the 32 rows of W
// stay in the first-level cache while all of x passes by; sums: [blocks][2][16][16].
template <class T>
inline void wide_block(const WideProblem<T>& p, const WideRows& w, int64_t n, int64_t columns, float* sums) {
  constexpr int64_t kChunk = (kParts<T> == 1 ? 16 : 4);  // in depths of 32 columns
  const int64_t blocks = wide_blocks(p.num_rows), passes = (blocks + 1) / 2, depths = p.k / kDepth;
  std::memset(sums, 0, blocks * 2 * 256 * sizeof(float));
  for (int64_t begin = 0; begin < depths; begin += kChunk)
    for (int64_t b = 0; b < blocks; b += 2) {
      const bf16* x = p.x + b * block_elements<T>(p.k);
      const auto run = b + 1 < blocks ? wide_tiles<T, 2> : wide_tiles<T, 1>;
      run(w, x, p.k, begin, min64(begin + kChunk, depths), b / 2, passes, sums + b * 2 * 256);
    }
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t half = 0; half < 2 && half * 16 < columns; ++half)
      store_block(sums + (2 * b + half) * 256, p.bias ? p.bias + n + 16 * half : nullptr,
                  min64(kTileRows, p.num_rows - b * kTileRows), min64(16, columns - 16 * half),
                  p.out + b * kTileRows * p.n + n + 16 * half, p.n);
}

// The calling thread's memory for one block of columns.
template <class T>
struct WideMemory {
  float* sums;
  bf16* rows;
  WideMemory(int64_t num_rows, int64_t k) {
    const int64_t sum_elements = wide_blocks(num_rows) * 2 * 256;
    sums = static_cast<float*>(scratch(sum_elements * 4 + 2 * kParts<T> * 2 * kTileRows * k));
    rows = reinterpret_cast<bf16*>(sums + sum_elements);
  }
};

// Columns [n, n + 32) of the result, or what there is of them.
template <class T>
inline void wide_columns(const WideProblem<T>& p, int64_t n, const WideMemory<T>& memory) {
  const int64_t columns = min64(2 * kTileRows, p.n - n);
  const T* w = p.w + n * p.k;
  if constexpr (std::is_same_v<T, bf16>)
    if (columns == 2 * kTileRows) return wide_block(p, rows_in_place(w, p.k), n, columns, memory.sums);
  wide_block(p, rows_in_parts(w, columns, p.k, memory.rows), n, columns, memory.sums);
}

}  // namespace antiphon::ANTIPHON_ISA
