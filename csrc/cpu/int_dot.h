// Exact integer dot products of int8 or int4 weights with activations held as two int8 planes.
//
// A row of x is quantised to q = round(x / step), |q| <= 127 * 241, and split into q = 256 high + low with both parts
// in [-128, 127], or q = 241 high + low with low in [-120, 120]. Sums are integers, so neither order nor instruction set
// nor how q is split changes them; the error against float activations is half a step, 1.6e-5 of the row's largest value.
#pragma once

#include "simd.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int kByteBase = 256, kOddBase = 241;
constexpr float kLargestQuantum = 127.0f * kOddBase;
constexpr int64_t kInt4Group = 128;  // columns that share a scale
constexpr int64_t kInt4Bytes = 64;   // of a group

#if defined(__AVX512VNNI__)
// 64 products a step; the instruction wants one side unsigned, so weights carry an offset that `start` takes back.
struct IntDot {
  static constexpr int width = 64;
  using Plane = int8_t;
  using vec = __m512i;
  using acc = __m512i;
  static acc start(int32_t offset_sum) { return _mm512_maskz_set1_epi32(1, -offset_sum); }
  static constexpr int int8_offset = 128;
  static constexpr int int4_offset = 8;
  static vec load(const Plane* p) { return _mm512_loadu_si512(p); }
  static vec load_int8(const int8_t* w) { return _mm512_xor_si512(_mm512_loadu_si512(w), _mm512_set1_epi8(-128)); }
  static void load_int4(const uint8_t* w, vec (&out)[2]) {
    const __m512i raw = _mm512_loadu_si512(w), mask = _mm512_set1_epi8(15);
    out[0] = _mm512_and_si512(raw, mask);
    out[1] = _mm512_and_si512(_mm512_srli_epi16(raw, 4), mask);
  }
  // Not the intrinsic: GCC 12 copies sums to and fro around it, for up to 2.5 times the time.
  static acc step(acc sum, vec w, vec x) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    return sum;
  }
  // The same four numbers of x for all lanes.
  static vec word(const Plane* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
  }
  static int32_t total(acc sum) { return _mm512_reduce_add_epi32(sum); }
  static vf combine(acc high, acc low) { return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low)); }
};
#elif defined(__AVX512BW__)
struct IntDot {
  static constexpr int width = 32;
  using Plane = int16_t;
  using vec = __m512i;
  using acc = __m512i;
  static acc start(int32_t) { return _mm512_setzero_si512(); }
  static constexpr int int8_offset = 0;
  static constexpr int int4_offset = 0;
  static vec load(const Plane* p) { return _mm512_loadu_si512(p); }
  static vec load_int8(const int8_t* w) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)));
  }
  static void load_int4(const uint8_t* w, vec (&out)[4]) {
    const __m512i eight = _mm512_set1_epi16(8), mask = _mm512_set1_epi16(15);
    for (int i = 0; i < 2; ++i) {
      const __m512i raw = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 32 * i)));
      out[i] = _mm512_sub_epi16(_mm512_and_si512(raw, mask), eight);
      out[2 + i] = _mm512_sub_epi16(_mm512_srli_epi16(raw, 4), eight);
    }
  }
  static acc step(acc sum, vec w, vec x) { return _mm512_add_epi32(sum, _mm512_madd_epi16(w, x)); }
  static int32_t total(acc sum) { return _mm512_reduce_add_epi32(sum); }
  static vf combine(acc high, acc low) { return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low)); }
};
#elif defined(__AVX2__)
struct IntDot {
  static constexpr int width = 16;
  using Plane = int16_t;
  using vec = __m256i;
  using acc = __m256i;
  static acc start(int32_t) { return _mm256_setzero_si256(); }
  static constexpr int int8_offset = 0;
  static constexpr int int4_offset = 0;
  static vec load(const Plane* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static vec load_int8(const int8_t* w) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
  }
  static void load_int4(const uint8_t* w, vec (&out)[8]) {
    const __m256i eight = _mm256_set1_epi16(8), mask = _mm256_set1_epi16(15);
    for (int i = 0; i < 4; ++i) {
      const __m256i raw = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w + 16 * i)));
      out[i] = _mm256_sub_epi16(_mm256_and_si256(raw, mask), eight);
      out[4 + i] = _mm256_sub_epi16(_mm256_srli_epi16(raw, 4), eight);
    }
  }
  static acc step(acc sum, vec w, vec x) { return _mm256_add_epi32(sum, _mm256_madd_epi16(w, x)); }
  static int32_t total(acc sum) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
  }
  static vf combine(acc high, acc low) { return _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32(high, 8), low)); }
};
#else
struct IntDot {
  static constexpr int width = 1;
  using Plane = int8_t;
  using vec = int32_t;
  using acc = int32_t;
  static acc start(int32_t) { return 0; }
  static constexpr int int8_offset = 0;
  static constexpr int int4_offset = 0;
  static vec load(const Plane* p) { return *p; }
  static vec load_int8(const int8_t* w) { return *w; }
  static void load_int4(const uint8_t* w, vec (&out)[128]) {
    for (int i = 0; i < 64; ++i) {
      out[i] = (w[i] & 15) - 8;
      out[64 + i] = (w[i] >> 4) - 8;
    }
  }
  static acc step(acc sum, vec w, vec x) { return sum + w * x; }
  static int32_t total(acc sum) { return sum; }
  static vf combine(acc high, acc low) { return static_cast<float>(high * 256 + low); }
};
#endif

#if defined(__AVX512F__)
// Lane r of the result is the sum of the lanes of v[r].
inline __m512i sum_of_each(const __m512i (&v)[16]) {
  __m512i pairs[8], quads[4], halves[2];
  for (int i = 0; i < 8; ++i)
    pairs[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]),
                                _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
  for (int i = 0; i < 4; ++i)
    quads[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(pairs[2 * i], pairs[2 * i + 1]),
                                _mm512_unpackhi_epi64(pairs[2 * i], pairs[2 * i + 1]));
  for (int i = 0; i < 2; ++i)
    halves[i] = _mm512_add_epi32(_mm512_shuffle_i32x4(quads[2 * i], quads[2 * i + 1], 0x88),
                                 _mm512_shuffle_i32x4(quads[2 * i], quads[2 * i + 1], 0xdd));
  return _mm512_add_epi32(_mm512_shuffle_i32x4(halves[0], halves[1], 0x88),
                          _mm512_shuffle_i32x4(halves[0], halves[1], 0xdd));
}
#endif

// Largest |q| of a row becomes 127 * 241; returns the step (0 for a row of zeros).
template <class T>
inline float quantum(const T* x, int64_t k) {
  vf largest = set1(0.0f), least = largest;
  for_vectors(k, [&](int64_t i, int64_t n) {
    const vf v = load_upto(x + i, n);
    largest = max(largest, v);
    least = max(least, sub(set1(0.0f), v));
  });
  return hmax(max(largest, least)) / kLargestQuantum;
}
inline float inverse_of(float step) { return step > 0.0f ? 1.0f / step : 0.0f; }

// q = 256 high + low of a row: put(i, high, low, n) for runs of up to 64 columns from i on, n a multiple of 4 wherever
// k is one.
template <class T, class Put>
inline float split_row(const T* x, int64_t k, const Put& put) {
  constexpr int64_t kRun = 64;
  const float step = quantum(x, k), inverse = inverse_of(step);
  alignas(64) float q[kRun];
  alignas(64) int8_t high[kRun], low[kRun];
  for (int64_t i = 0; i < k; i += kRun) {
    const int64_t n = min64(kRun, k - i);
    for_vectors(n, [&](int64_t j, int64_t m) { store_upto(q + j, nearest(mul(load_upto(x + i + j, m), set1(inverse))), m); });
    for (int64_t j = 0; j < n; ++j) {
      const int32_t value = static_cast<int32_t>(q[j]), upper = (value + 128) >> 8;
      high[j] = static_cast<int8_t>(upper);
      low[j] = static_cast<int8_t>(value - 256 * upper);
    }
    put(i, high, low, n);
  }
  return step;
}

#if defined(__AVX512BW__)
// 64 columns of a row of x as split_row splits them, four to a word: word i holds columns 4 word_of_split(i) and after,
// the order in which packing within quarters of a vector leaves them.
constexpr int64_t word_of_split(int64_t i) { return i % 4 * 4 + i / 4; }

template <int kBase = kByteBase, class T>
inline void split_columns(const T* x, vf inverse, __m512i* high, __m512i* low) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  const auto q = [&](int64_t i) { return _mm512_cvt_roundps_epi32(mul(load(x + i), inverse), kNearest); };
  const __m512i halves[] = {_mm512_packs_epi32(q(0), q(16)), _mm512_packs_epi32(q(32), q(48))};
  __m512i upper[2], lower[2];
  for (int i = 0; i < 2; ++i) {
    if constexpr (kBase == kByteBase) {
      const __m512i shifted = _mm512_add_epi16(halves[i], _mm512_set1_epi16(128));  // 256 high + (low + 128)
      upper[i] = _mm512_srai_epi16(shifted, 8);
      lower[i] = _mm512_and_si512(shifted, _mm512_set1_epi16(255));
    } else {
      constexpr int kShift = kOddBase / 2 + 128 * kOddBase, kInverse = 34808;  // 2^23 / 241; exact for all 16-bit numerators
      const __m512i shifted = _mm512_add_epi16(halves[i], _mm512_set1_epi16(kShift));
      const __m512i quotient = _mm512_mulhi_epu16(shifted, _mm512_set1_epi16(static_cast<int16_t>(kInverse)));
      upper[i] = _mm512_sub_epi16(_mm512_srli_epi16(quotient, 7), _mm512_set1_epi16(128));
      lower[i] = _mm512_sub_epi16(halves[i], _mm512_mullo_epi16(upper[i], _mm512_set1_epi16(kOddBase)));
    }
  }
  *high = _mm512_packs_epi16(upper[0], upper[1]);
  *low = kBase == kByteBase
             ? _mm512_xor_si512(_mm512_packus_epi16(lower[0], lower[1]), _mm512_set1_epi8(-128))
             : _mm512_packs_epi16(lower[0], lower[1]);
}

// Columns that split_columns has left in its order, in theirs.
inline __m512i in_order(__m512i split) {
  const __m512i words = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(words, split);
}
#endif

#if defined(__AVX512VNNI__)
// 64 columns of a row of x to both planes; adds to the sums of each, whose lanes are to be added up.
template <class T>
inline void split_line(const T* x, vf inverse, int8_t* high, int8_t* low, __m512i (&sums)[2]) {
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i planes[2];
  split_columns(x, inverse, &planes[0], &planes[1]);
  _mm512_store_si512(high, in_order(planes[0]));
  _mm512_store_si512(low, in_order(planes[1]));
  for (int i = 0; i < 2; ++i) sums[i] = IntDot::step(sums[i], ones, planes[i]);
}
#endif

}  // namespace antiphon::ANTIPHON_ISA
