// y[t] = x[t] W^T + bias in float32 by integer tiles: every row of x and of W is rounded to 24-bit fixed point with a
// scale of its own and written as three signed bytes, value * scale = high * 2^16 + middle * 2^8 + low.
//
// Of the nine products of bytes the six largest are summed, exactly, in three 32-bit integers by weight: over
// kMaxFixedInputs inputs at most 3 * 2^29 in size. Each is rounded to float32, and so is every operation on them, in a
// fixed order; products with powers of two are exact, so it does not matter which are fused. A row has the same bits at
// every number of rows and threads. The three products left out are below 2^-22 (largest x) (largest w) a term. A row
// with a value that is not finite is not a number throughout.
//
// Tiles are [rows / 16][k / 64][3][16 rows][64] of x, [n / 32][k / 64][3][2][16][16 rows][4] of W, zero past the end.
#include "kernels.h"
#include "simd.h"
#include "weights_ahead.h"
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
constexpr int64_t kCached = 3 << 19;           // bytes of x or W that stay in the second-level cache
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

// What a sum is multiplied with for a scale, split so that neither factor nor what is between leaves float32's range.
constexpr float kUnitOfX = 0x1p7f, kUnitOfW = 0x1p25f;
inline float unit_of(float scale, float unit) {
  return unit / (scale == 0.0f ? std::numeric_limits<float>::infinity() : scale);
}

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
  const uint64_t mask = columns >= kDepth ? ~uint64_t{0} : columns > 0 ? (uint64_t{1} << columns) - 1 : 0;
  // With 128 added to every digit the bytes of the sum are the digits, and the top bit of each tells 128 apart again.
  const __m512i offset = _mm512_set1_epi32(0x808080);
  const __m512i by_digit = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  __m512i v[4];
  for (int i = 0; i < 4; ++i) {
    const __m512 value = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16 * i), x + 16 * i);
    const __m512i fixed = _mm512_cvtps_epi32(_mm512_mul_ps(value, _mm512_set1_ps(scale)));
    v[i] = _mm512_shuffle_epi8(_mm512_xor_si512(_mm512_add_epi32(fixed, offset), offset), by_digit);
  }
  const __m512i even = _mm512_unpacklo_epi32(v[0], v[1]), odd = _mm512_unpacklo_epi32(v[2], v[3]);
  const __m512i high = _mm512_unpacklo_epi64(_mm512_unpackhi_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[2], v[3]));
  const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i planes[] = {high, _mm512_unpackhi_epi64(even, odd), _mm512_unpacklo_epi64(even, odd)};
  for (int d = 0; d < kDigits; ++d)
    _mm512_storeu_si512(digits + d * kTile, _mm512_permutexvar_epi32(in_order, planes[d]));
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
  const Range range = partition(blocks_of(a.num_rows) * kBlock, kBlock, index, count);
  for (int64_t t = range.begin; t < range.end; ++t) {
    const float* x = a.x + t * a.x_stride;
    const float scale = t < a.num_rows ? scale_of(largest_of(x, a.k)) : 0.0f;
    a.x_units[t] = unit_of(scale, kUnitOfX);
    int8_t* out = a.x_tiles + t / kBlock * depths * kDigits * kTile + t % kBlock * kDepth;
    for (int64_t i = 0; i < depths; ++i)
      split_digits(x + i * kDepth, scale > 0.0f ? a.k - i * kDepth : 0, scale, out + i * kDigits * kTile);
  }
}

namespace {

// Sums of the products whose weights are 2^32, 2^24 and 2^16: sums[3][x block][W block][16 rows of x][16 rows of W].
constexpr int64_t kSums = 4 * kBlock * kBlock;

// A panel of up to kOutputs columns of the result: units and bias, zero past the end.
struct Panel {
  alignas(64) float units[kOutputs] = {}, bias[kOutputs] = {};
  int64_t first = 0, columns = 0;

  Panel() = default;
  Panel(const LinearFixedArgs& a, int64_t n) : first(n), columns(min64(kOutputs, a.n - n)) {
    for (int64_t i = 0; i < columns; ++i) units[i] = unit_of(a.scales[n + i], kUnitOfW);
    if (a.bias)
      for (int64_t i = 0; i < columns; ++i) bias[i] = a.bias[n + i];
  }
};

// a * b + c of which a * b is exact, so that it does not matter whether it is fused.
inline float add_exact(float a, float b, float c) {
#if defined(__FMA__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// Sums of a pair of blocks of x that wait to become results, a few rows at a time between the products of the next,
// so that tiles and vectors work side by side.
struct Waiting {
  const Panel* panel = nullptr;
  const int32_t* sums = nullptr;
  const float* x_units = nullptr;
  float* out = nullptr;
  int64_t stride = 0, row = 0, rows = 0, at_a_time = 0;

  // Fetches where the results go.
  void fetch() const {
    for (int64_t t = 0; t < rows; ++t)
      for (int64_t n = 0; n < kOutputs; n += kBlock) __builtin_prefetch(out + t * stride + n, 1);
  }
  void some() {
    for (const int64_t end = min64(row + at_a_time, rows); row < end; ++row) store();
  }
  void all() {
    for (; row < rows; ++row) store();
  }
  void store() const {
    const int32_t* from = sums + row / kBlock * 512 + row % kBlock * kBlock;
    if (panel->columns == kOutputs) {
      half(from, 0, out + row * stride);
      half(from, 1, out + row * stride + kBlock);
      return;
    }
    float values[kOutputs];
    half(from, 0, values);
    half(from, 1, values + kBlock);
    std::memcpy(out + row * stride, values, panel->columns * sizeof(float));
  }
  void half(const int32_t* from, int64_t which, float* __restrict to) const {
    const float *units = panel->units + which * kBlock, *bias = panel->bias + which * kBlock;
    const float x_unit = x_units[row];
    const int32_t *high = from + which * 256, *middle = high + kSums, *low = middle + kSums;
    for (int64_t n = 0; n < kBlock; ++n) {
      const float rest = add_exact(static_cast<float>(low[n]), 0x1p-8f, static_cast<float>(middle[n]));
      to[n] = add_exact(rest, 0x1p-8f, static_cast<float>(high[n])) * x_unit * units[n] + bias[n];
    }
  }
};

#if defined(__AMX_INT8__)
// sums += digits `of_x` of one or two blocks of x times digits `of_w` of two blocks of W, in tiles 0 to 3.
template <int kBlocks>
inline void digit_products(const int8_t* x, const int8_t* w, int64_t x_block, int64_t depths, Waiting& waiting,
                           WeightsAhead& ahead) {
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
    waiting.some();
    ahead.fetch();
  }
}

template <int kBlocks>
inline void fixed_tiles(const int8_t* x, const int8_t* w, int64_t x_block, int64_t depths, bool first, int32_t* sums,
                        Waiting& waiting, WeightsAhead& ahead) {
  for (int weight = 0; weight < 3; ++weight, sums += kSums) {
    first ? zero_sums<kBlocks>() : load_sums<kBlocks>(sums, 256, 2 * 256);
    for (int of_x = 0; of_x <= weight; ++of_x)
      digit_products<kBlocks>(x + of_x * kTile, w + (weight - of_x) * 2 * kTile, x_block, depths, waiting, ahead);
    store_sums<kBlocks>(sums, 256, 2 * 256);
  }
}

inline void fixed_sums(const int8_t* x, const int8_t* w, int64_t x_block, int64_t blocks, int64_t depths, bool first,
                       int32_t* sums, Waiting& waiting, WeightsAhead& ahead) {
  (blocks == 2 ? fixed_tiles<2> : fixed_tiles<1>)(x, w, x_block, depths, first, sums, waiting, ahead);
}
#else
inline void fixed_sums(const int8_t* x, const int8_t* w, int64_t x_block, int64_t blocks, int64_t depths, bool first,
                       int32_t* sums, Waiting&, WeightsAhead&) {
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

// Pairs of blocks of x that meet one panel of W after another. Where W stays in the second-level cache few are best,
// for their results lie close together. Otherwise as many as stay there, for W comes from further away every time.
inline int64_t pairs_at_a_time(const LinearFixedArgs& a) {
  if (linear_fixed_weight_bytes(a.n, a.k) <= kCached) return 4;
  return max64(8, kCached / linear_fixed_bytes(kOutputs, a.k));
}

// Pairs [first, end) times a panel: `waiting` is what the panel before left, then what this one does; `ahead` is of the
// panel after.
inline void fixed_panel(const LinearFixedArgs& a, int64_t first, int64_t end, const Panel& panel, int32_t* sums,
                        Waiting& waiting, WeightsAhead& ahead) {
  const int64_t depths = depths_of(a.k), x_block = depths * kDigits * kTile;
  const int8_t* w = a.tiles + panel.first / kOutputs * depths * 2 * kDigits * kTile;
  for (int64_t begin = 0; begin < depths; begin += kChunk) {
    const int64_t of_chunk = min64(kChunk, depths - begin), steps = 6 * of_chunk;
    for (int64_t pair = first; pair < end; ++pair) {
      const int64_t row = pair * kOutputs, rows = min64(kOutputs, a.num_rows - row);
      int32_t* to = sums + (depths > kChunk ? pair - first : waiting.sums == sums) * 3 * kSums;
      if (to == waiting.sums) waiting.all();
      fixed_sums(a.x_tiles + 2 * pair * x_block + begin * kDigits * kTile, w + begin * 2 * kDigits * kTile, x_block,
                 blocks_of(rows), of_chunk, begin == 0, to, waiting, ahead);
      waiting.all();
      if (begin + kChunk < depths) continue;
      waiting = {&panel, to, a.x_units + row, a.out + row * a.n + panel.first, a.n, 0, rows, (rows - 1) / steps + 1};
      waiting.fetch();
    }
  }
}

}  // namespace

// Threads claim a panel for some pairs of blocks of x, always one ahead of what they do.
void linear_fixed(const LinearFixedArgs& a, int, int) {
  const int64_t panels = (a.n + kOutputs - 1) / kOutputs, pairs = (a.num_rows + kOutputs - 1) / kOutputs;
  const int64_t group = pairs_at_a_time(a), units = (pairs + group - 1) / group * panels;
  const int64_t bytes = linear_fixed_bytes(kOutputs, a.k);  // of a panel of W
  int32_t* sums = static_cast<int32_t*>(scratch(group * 3 * kSums * sizeof(int32_t)));
#if defined(__AMX_INT8__)
  configure_tiles(16);
#endif
  Panel panel[2];
  Waiting waiting;
  const auto claim = [&] { return a.next->fetch_add(1, std::memory_order_relaxed); };
  for (int64_t unit = claim(), after, turn = 0; unit < units; unit = after, turn = 1 - turn) {
    panel[turn] = Panel(a, unit % panels * kOutputs);
    const int64_t first = unit / panels * group, end = min64(first + group, pairs);
    WeightsAhead ahead;
    if ((after = claim()) < units)
      ahead = {a.tiles + after % panels * bytes, bytes, bytes, 1, 6 * depths_of(a.k) * (end - first)};
    fixed_panel(a, first, end, panel[turn], sums, waiting, ahead);
  }
  waiting.all();
#if defined(__AMX_INT8__)
  _tile_release();
#endif
}

}  // namespace antiphon::ANTIPHON_ISA
