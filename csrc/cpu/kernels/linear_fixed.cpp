// y[t] = x[t] W^T + bias in float32 by integer tiles: every row of x and of W is rounded to 24-bit fixed point with a scale
// of its own and written as three signed bytes, value * scale = high * 2^16 + middle * 2^8 + low.
//
// Of the nine products of bytes the six largest are summed, exactly, in 32-bit integers; the rest is double, rounded once,
// so a row has the same bits at every number of rows and threads. The three products left out are below
// 2^-22 (largest x) (largest w) a term. A row with a value that is not finite is not a number throughout.
//
// Tiles are [rows / 16][k / 64][3][16 rows][64] of x, [n / 32][k / 64][3][2][16][16 rows][4] of W, zero past the end.
#include "kernels.h"
#include "simd.h"
#if defined(__AMX_INT8__)
#include "tiles.h"
#endif

namespace antiphon::ANTIPHON_ISA {

namespace {

constexpr int64_t kBlock = 16;                 // rows of x or W in a tile
constexpr int64_t kDepth = 64;                 // columns
constexpr int64_t kTile = kBlock * kDepth;     // bytes
constexpr int64_t kDigits = 3;
constexpr int64_t kOutputs = 2 * kBlock;       // rows of W that meet a pair of blocks of x
constexpr int64_t kChunk = 32;                 // depths whose tiles of a pair of blocks stay in the second-level cache
constexpr float kLargest = (127 << 16) + (127 << 8) + 126;  // one less than three digits hold: the product is rounded

inline int64_t blocks_of(int64_t rows) { return (rows + kBlock - 1) / kBlock; }
inline int64_t depths_of(int64_t k) { return (k + kDepth - 1) / kDepth; }

// What brings values up to `largest`, given as bits, to kLargest; NaN where it is not finite, 0 below 2^-100.
inline float scale_of(uint32_t largest) {
  if (largest >= 0x7f800000u) return std::numeric_limits<float>::quiet_NaN();
  float value;
  std::memcpy(&value, &largest, 4);
  return value < std::ldexp(1.0f, -100) ? 0.0f : kLargest / value;
}

// 1 / scale, 0 of 0.
inline double step_of(float scale) { return scale == 0.0f ? 0.0 : 1.0 / scale; }

inline uint32_t largest_of(const float* x, int64_t k) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < k; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, 4);
    bits &= 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

// Digits of up to 64 columns: digits[d * kTile + i].
inline void split_digits(const float* x, int64_t columns, float scale, int8_t* digits) {
#if defined(__AVX512F__)
  for (int64_t i = 0; i < kDepth; i += 16) {
    const int64_t left = columns - i;
    const __mmask16 mask = left >= 16 ? 0xffff : left > 0 ? static_cast<__mmask16>((1u << left) - 1) : 0;
    __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), _mm512_set1_ps(scale)));
    const __m512i half = _mm512_set1_epi32(128);
    for (int64_t d = kDigits - 1; d >= 0; --d) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(digits + d * kTile + i), _mm512_cvtepi32_epi8(v));
      v = _mm512_srai_epi32(_mm512_add_epi32(v, half), 8);
    }
  }
#else
  for (int64_t i = 0; i < kDepth; ++i) {
    int32_t v = i < columns ? static_cast<int32_t>(std::nearbyint(x[i] * scale)) : 0;
    for (int64_t d = kDigits - 1; d >= 0; --d) {
      const int32_t low = ((v + 128) & 255) - 128;
      digits[d * kTile + i] = static_cast<int8_t>(low);
      v = (v - low) / 256;
    }
  }
#endif
}

}  // namespace

void linear_fixed_weight(const LinearFixedWeightArgs& a, int index, int count) {
  const int64_t depths = depths_of(a.k), pair = 2 * kDigits * kTile;
  const Range range = partition((a.n + kOutputs - 1) / kOutputs, 1, index, count);
  for (int64_t n = range.begin * kOutputs; n < range.end * kOutputs; ++n) {
    const float* w = a.weight + n * a.k;
    const float scale = n < a.n ? scale_of(largest_of(w, a.k)) : 0.0f;
    if (n < a.n) a.scales[n] = scale;
    int8_t* out = a.tiles + n / kOutputs * depths * pair + n % kOutputs / kBlock * kTile + n % kBlock * 4;
    for (int64_t i = 0; i < depths; ++i, out += pair) {
      int8_t digits[kDigits * kTile];
      split_digits(w + i * kDepth, scale > 0.0f ? a.k - i * kDepth : 0, scale, digits);
      for (int64_t d = 0; d < kDigits; ++d)
        for (int64_t j = 0; j < kDepth; j += 4)
          std::memcpy(out + d * 2 * kTile + j * kBlock, digits + d * kTile + j, 4);
    }
  }
}

void linear_fixed_pack(const LinearFixedArgs& a, int index, int count) {
  const int64_t depths = depths_of(a.k);
  const Range range = partition(blocks_of(a.num_rows) * kBlock, 1, index, count);
  for (int64_t t = range.begin; t < range.end; ++t) {
    const float* x = a.x + t * a.x_stride;
    const float scale = t < a.num_rows ? scale_of(largest_of(x, a.k)) : 0.0f;
    a.x_scales[t] = scale;
    int8_t* out = a.x_tiles + t / kBlock * depths * kDigits * kTile + t % kBlock * kDepth;
    for (int64_t i = 0; i < depths; ++i)
      split_digits(x + i * kDepth, scale > 0.0f ? a.k - i * kDepth : 0, scale, out + i * kDigits * kTile);
  }
}

namespace {

// Sums of the products whose weights are 2^32, 2^24 and 2^16: sums[3][x block][W block][16 rows of x][16 rows of W].
constexpr int64_t kSums = 4 * kBlock * kBlock;

#if defined(__AMX_INT8__)
// sums += digits `of_x` of one or two blocks of x times digits `of_w` of two blocks of W, in tiles 0 to 3.
template <int kBlocks>
inline void digit_products(const int8_t* x, const int8_t* w, int64_t x_block, int64_t depths) {
  for (int64_t i = 0; i < depths; ++i, x += kDigits * kTile, w += 2 * kDigits * kTile) {
    _tile_loadd(4, x, 64);
    _tile_loadd(6, w, 64);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(7, w + kTile, 64);
    _tile_dpbssd(1, 4, 7);
    if constexpr (kBlocks == 2) {
      _tile_loadd(5, x + x_block, 64);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    }
  }
}

template <int kBlocks>
inline void fixed_tiles(const int8_t* x, const int8_t* w, int64_t x_block, int64_t depths, bool first, int32_t* sums) {
  for (int weight = 0; weight < 3; ++weight, sums += kSums) {
    first ? zero_sums<kBlocks>() : load_sums<kBlocks>(sums, 256, 2 * 256);
    for (int of_x = 0; of_x <= weight; ++of_x)
      digit_products<kBlocks>(x + of_x * kTile, w + (weight - of_x) * 2 * kTile, x_block, depths);
    store_sums<kBlocks>(sums, 256, 2 * 256);
  }
}

inline void fixed_sums(const int8_t* x, const int8_t* w, int64_t x_block, int64_t blocks, int64_t depths, bool first,
                       int32_t* sums) {
  (blocks == 2 ? fixed_tiles<2> : fixed_tiles<1>)(x, w, x_block, depths, first, sums);
}
#else
inline void fixed_sums(const int8_t* x, const int8_t* w, int64_t x_block, int64_t blocks, int64_t depths, bool first,
                       int32_t* sums) {
  if (first) std::memset(sums, 0, 3 * kSums * sizeof(int32_t));
  for (int64_t i = 0; i < depths; ++i)
    for (int64_t part = 0; part < 2 * blocks; ++part)
      for (int weight = 0; weight < 3; ++weight)
        for (int of_x = 0; of_x <= weight; ++of_x) {
          const int8_t* a = x + part / 2 * x_block + (i * kDigits + of_x) * kTile;
          const int8_t* b = w + ((i * kDigits + weight - of_x) * 2 + part % 2) * kTile;
          int32_t* sum = sums + weight * kSums + part * 256;
          for (int64_t t = 0; t < kBlock; ++t)
            for (int64_t n = 0; n < kBlock; ++n)
              for (int64_t j = 0; j < kDepth; ++j)
                sum[t * kBlock + n] += a[t * kDepth + j] * b[j / 4 * 64 + n * 4 + j % 4];
        }
}
#endif

// out[t][0, columns) of one row from the three sums of its block; steps of the rows of W.
inline void store_row(const int32_t* sums, double x_step, const double* steps, const float* bias, int64_t columns,
                      float* out) {
  for (int64_t n = 0; n < columns; ++n) {
    const double product = 65536.0 * sums[n] + 256.0 * sums[kSums + n] + sums[2 * kSums + n];
    out[n] = static_cast<float>(product * (65536.0 * x_step * steps[n]) + (bias ? bias[n] : 0.0f));
  }
}

// Columns [n, n + columns) of the result, columns <= kOutputs.
inline void fixed_panel(const LinearFixedArgs& a, int64_t n, int64_t columns, int32_t* sums) {
  const int64_t depths = depths_of(a.k), blocks = blocks_of(a.num_rows), x_block = depths * kDigits * kTile;
  const int8_t* w = a.tiles + n / kOutputs * depths * 2 * kDigits * kTile;
  for (int64_t begin = 0; begin < depths; begin += kChunk)
    for (int64_t b = 0; b < blocks; b += 2)
      fixed_sums(a.x_tiles + b * x_block + begin * kDigits * kTile, w + begin * 2 * kDigits * kTile, x_block,
                 min64(2, blocks - b), min64(kChunk, depths - begin), begin == 0, sums + b / 2 * 3 * kSums);
  double steps[kOutputs];
  for (int64_t i = 0; i < columns; ++i) steps[i] = step_of(a.scales[n + i]);
  for (int64_t t = 0; t < a.num_rows; ++t)
    for (int64_t half = 0; half * kBlock < columns; ++half) {
      const int64_t at = n + half * kBlock, part = t / kBlock % 2 * 2 + half;
      store_row(sums + t / kOutputs * 3 * kSums + part * 256 + t % kBlock * kBlock, step_of(a.x_scales[t]),
                steps + half * kBlock, a.bias ? a.bias + at : nullptr, min64(kBlock, columns - half * kBlock), a.out + t * a.n + at);
    }
}

}  // namespace

void linear_fixed(const LinearFixedArgs& a, int, int) {
  int32_t* sums = static_cast<int32_t*>(scratch((blocks_of(a.num_rows) + 1) / 2 * 3 * kSums * 4));
#if defined(__AMX_INT8__)
  configure_tiles(16);
#endif
  const int64_t panels = (a.n + kOutputs - 1) / kOutputs;
  for (int64_t panel; (panel = a.next->fetch_add(1, std::memory_order_relaxed)) < panels;)
    fixed_panel(a, panel * kOutputs, min64(kOutputs, a.n - panel * kOutputs), sums);
#if defined(__AMX_INT8__)
  _tile_release();
#endif
}

}  // namespace antiphon::ANTIPHON_ISA
