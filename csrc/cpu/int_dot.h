// Exact integer dot products of int8 or int4 weights with activations held as 16-bit integers.
//
// A row of x is quantised to q = round(x / step), |q| <= 127 * 241. Where bytes are multiplied it is two planes of int8:
// q = 256 high + low with both parts in [-128, 127], or q = 241 high + low with low in [-120, 120]. Sums are integers, so
// neither order nor instruction set nor how q is split changes them; the error against float activations is half a step,
// 1.6e-5 of the row's largest value.
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
  static constexpr int width = 64, bytes = 64;
  using vec = __m512i;
  using acc = __m512i;
  static acc start(int32_t offset_sum) { return _mm512_maskz_set1_epi32(1, -offset_sum); }
  static constexpr int int8_offset = 128;
  static vec load(const int8_t* x) { return _mm512_loadu_si512(x); }
  static vec load_int8(const int8_t* w) { return _mm512_xor_si512(_mm512_loadu_si512(w), _mm512_set1_epi8(-128)); }
  static void load_int4(const uint8_t* w, vec (&out)[2]) {
    const vec raw = _mm512_loadu_si512(w), mask = _mm512_set1_epi8(15);
    out[0] = _mm512_and_si512(raw, mask);
    out[1] = _mm512_and_si512(_mm512_srli_epi16(raw, 4), mask);
  }
  // Not the intrinsic: GCC 12 copies sums to and fro around it, for up to 2.5 times the time.
  static acc step(acc sum, vec w, vec x) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    return sum;
  }
  // The same four numbers of x for all lanes.
  static vec word(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
  }
  static int32_t total(acc sum) { return _mm512_reduce_add_epi32(sum); }
  // For int4: sums of a plane's products over a group, 256 high + low of two such sums, and a sum without an offset.
  static vec byte_products(vec w, vec x) { return step(_mm512_setzero_si512(), w, x); }
  static vec byte_products(vec sum, vec w, vec x) { return step(sum, w, x); }
  static vec of_planes(vec high, vec low) { return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low); }
  static vf less(acc a, int32_t by) { return _mm512_cvtepi32_ps(_mm512_sub_epi32(a, _mm512_set1_epi32(by))); }
  // 256 high + low, rounded once.
  static vf combine(acc high, acc low) {
    const auto half = [](__m256i of_high, __m256i of_low) {
      const __m512d upper = _mm512_cvtepi32_pd(of_high), lower = _mm512_cvtepi32_pd(of_low);
      return _mm512_cvtpd_ps(_mm512_fmadd_pd(upper, _mm512_set1_pd(256.0), lower));
    };
    const __m256 first = half(_mm512_castsi512_si256(high), _mm512_castsi512_si256(low));
    const __m256 second = half(_mm512_extracti64x4_epi64(high, 1), _mm512_extracti64x4_epi64(low, 1));
    return _mm512_insertf32x8(_mm512_castps256_ps512(first), second, 1);
  }
};
#elif defined(__AVX512BW__)
struct IntDot {
  using vec = __m512i;
  static constexpr int width = 32, bytes = 64;  // columns of a vector, of 16 bits or a byte each
  static vec zero() { return _mm512_setzero_si512(); }
  static vec load(const int16_t* x) { return _mm512_loadu_si512(x); }
  static vec load(const int8_t* x) { return _mm512_loadu_si512(x); }
  static vec load_int8(const int8_t* w) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)));
  }
  static void load_int4(const uint8_t* w, vec (&out)[2]) {
    const vec raw = _mm512_loadu_si512(w), mask = _mm512_set1_epi8(15);
    out[0] = _mm512_and_si512(raw, mask);
    out[1] = _mm512_and_si512(_mm512_srli_epi16(raw, 4), mask);
  }
  static vec add(vec a, vec b) { return _mm512_add_epi32(a, b); }
  static vec products(vec a, vec b) { return _mm512_madd_epi16(a, b); }
  static vec byte_products(vec w, vec x) { return _mm512_maddubs_epi16(w, x); }
  // Not the intrinsic: GCC 12 adds up many products as a tree, of which it keeps half in memory.
  static vec byte_products(vec sum, vec w, vec x) {
    asm("vpaddw %1, %0, %0" : "+v"(sum) : "v"(byte_products(w, x)));
    return sum;
  }
  static vec of_planes(vec high, vec low) {
    return add(products(high, _mm512_set1_epi16(256)), products(low, _mm512_set1_epi16(1)));
  }
  static vf less(vec a, int32_t by) { return _mm512_cvtepi32_ps(_mm512_sub_epi32(a, _mm512_set1_epi32(by))); }
  static int64_t total(vec sum) {
    return _mm512_reduce_add_epi64(_mm512_add_epi64(_mm512_cvtepi32_epi64(_mm512_castsi512_si256(sum)),
                                                    _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(sum, 1))));
  }
  static void store(int16_t* to, vf v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(v)));
  }
};
#elif defined(__AVX2__)
struct IntDot {
  using vec = __m256i;
  static constexpr int width = 16, bytes = 32;
  static vec zero() { return _mm256_setzero_si256(); }
  static vec load(const int16_t* x) { return _mm256_loadu_si256(reinterpret_cast<const vec*>(x)); }
  static vec load(const int8_t* x) { return _mm256_loadu_si256(reinterpret_cast<const vec*>(x)); }
  static vec load_int8(const int8_t* w) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
  }
  static void load_int4(const uint8_t* w, vec (&out)[4]) {
    const vec mask = _mm256_set1_epi8(15);
    for (int i = 0; i < 2; ++i) {
      const vec raw = _mm256_loadu_si256(reinterpret_cast<const vec*>(w + 32 * i));
      out[i] = _mm256_and_si256(raw, mask);
      out[2 + i] = _mm256_and_si256(_mm256_srli_epi16(raw, 4), mask);
    }
  }
  static vec add(vec a, vec b) { return _mm256_add_epi32(a, b); }
  static vec products(vec a, vec b) { return _mm256_madd_epi16(a, b); }
  static vec byte_products(vec w, vec x) { return _mm256_maddubs_epi16(w, x); }
  // Not the intrinsic: GCC 12 adds up many products as a tree, of which it keeps half in memory.
  static vec byte_products(vec sum, vec w, vec x) {
    asm("vpaddw %1, %0, %0" : "+x"(sum) : "x"(byte_products(w, x)));
    return sum;
  }
  static vec of_planes(vec high, vec low) {
    return add(products(high, _mm256_set1_epi16(256)), products(low, _mm256_set1_epi16(1)));
  }
  static vf less(vec a, int32_t by) { return _mm256_cvtepi32_ps(_mm256_sub_epi32(a, _mm256_set1_epi32(by))); }
  static int64_t total(vec sum) {
    const vec four = _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_castsi256_si128(sum)),
                                      _mm256_cvtepi32_epi64(_mm256_extracti128_si256(sum, 1)));
    const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
    return _mm_cvtsi128_si64(_mm_add_epi64(two, _mm_unpackhi_epi64(two, two)));
  }
  static void store(int16_t* to, vf v) {
    const vec whole = _mm256_cvtps_epi32(v);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1)));
  }
};
#else
struct IntDot {
  using vec = int32_t;
  static constexpr int width = 1, bytes = 1;
  static vec zero() { return 0; }
  static vec load(const int16_t* x) { return *x; }
  static vec load(const int8_t* x) { return *x; }
  static vec load_int8(const int8_t* w) { return *w; }
  static void load_int4(const uint8_t* w, vec (&out)[128]) {
    for (int i = 0; i < 64; ++i) {
      out[i] = w[i] & 15;
      out[64 + i] = w[i] >> 4;
    }
  }
  static vec add(vec a, vec b) { return a + b; }
  static vec products(vec a, vec b) { return a * b; }
  static vec byte_products(vec w, vec x) { return w * x; }
  static vec byte_products(vec sum, vec w, vec x) { return sum + w * x; }
  static vec of_planes(vec high, vec low) { return 256 * high + low; }
  static vf less(vec a, int32_t by) { return static_cast<float>(a - by); }
  static int64_t total(vec sum) { return sum; }
  static void store(int16_t* to, vf v) { *to = static_cast<int16_t>(std::nearbyintf(v)); }
};
#endif

// Lane r of the result is the sum of the lanes of v[r].
#if defined(__AVX512F__)
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
#elif defined(__AVX2__)
inline __m256i sum_of_each(const __m256i (&v)[8]) {
  __m256i pairs[4], quads[2];
  for (int i = 0; i < 4; ++i)
    pairs[i] = _mm256_add_epi32(_mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]),
                                _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
  for (int i = 0; i < 2; ++i)
    quads[i] = _mm256_add_epi32(_mm256_unpacklo_epi64(pairs[2 * i], pairs[2 * i + 1]),
                                _mm256_unpackhi_epi64(pairs[2 * i], pairs[2 * i + 1]));
  return _mm256_add_epi32(_mm256_permute2x128_si256(quads[0], quads[1], 0x20),
                          _mm256_permute2x128_si256(quads[0], quads[1], 0x31));
}
#else
inline int32_t sum_of_each(const int32_t (&v)[1]) { return v[0]; }
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

#if !defined(__AVX512VNNI__)
// q of n columns, whole vectors.
template <class T>
inline void quantise(const T* x, int64_t n, float inverse, int16_t* q) {
  for (int64_t i = 0; i < n; i += VF) IntDot::store(q + i, mul(load(x + i), set1(inverse)));
}
#else
// 64 columns of a row of x in two planes, four to a word: word i holds columns 4 word_of_split(i) and after, the order in
// which packing within quarters of a vector leaves them.
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
