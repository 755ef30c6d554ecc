// One vector of floats, as wide as the instruction set this file is compiled for: 16, 8 or, as the readable
// specification that the others are tested against, 1. Everything lives in the namespace of that instruction set, so
// that no inline function of one can be linked into another. Lanes never mix except in hsum, hsums and hmax, whose
// order is fixed.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "bf16.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "sanitized.h"

namespace antiphon::ANTIPHON_ISA {

inline float widen(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}
inline float widen(float x) { return x; }

// Round to nearest, ties to even; NaN stays NaN.
inline bf16 round_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return {0x7fc0};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

#if defined(__AVX512F__)
#include "simd_avx512.inc"
#elif defined(__AVX2__)
#include "simd_avx2.inc"
#else
#include "simd_scalar.inc"
#endif

// The last n < VF elements; lanes past them are zero and are not touched in memory.
#if !defined(__AVX512F__)
template <class T>
inline vf load_n(const T* p, int64_t n) {
  T lanes[VF] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}
template <class T>
inline void store_n(T* p, vf v, int64_t n) {
  T lanes[VF];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}
inline vf hsums(const vf (&v)[VF]) {  // lane i: hsum(v[i])
  float lanes[VF];
  for (int64_t i = 0; i < VF; ++i) lanes[i] = hsum(v[i]);
  return load(lanes);
}
#endif

// A value as it would be after a round trip through memory of type T.
template <class T>
inline vf through(vf v);
template <>
inline vf through<float>(vf v) { return v; }
template <>
inline vf through<bf16>(vf v) {
  bf16 lanes[VF];
  store(lanes, v);
  return load(lanes);
}

// Calls f(offset, full) for every vector of n elements; full is false for a shorter last one.
template <class F>
inline void for_vectors(int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + VF <= n; i += VF) f(i, static_cast<int64_t>(VF));
  if (i < n) f(i, n - i);
}
template <class T>
inline vf load_upto(const T* p, int64_t n) { return n == VF ? load(p) : load_n(p, n); }
template <class T>
inline void store_upto(T* p, vf v, int64_t n) { n == VF ? store(p, v) : store_n(p, v, n); }

// Lane j: element (i + j) ^ 1 of p, for even n.
template <class T>
inline vf load_swapped(const T* p, int64_t i, int64_t n) {
#if defined(__AVX2__)
  return swap_neighbours(load_upto(p + i, n));
#else
  return load_upto(p + (i ^ 1), n);
#endif
}

// e^x to 2 ulp for -87.3 < x < 88.3, clamped outside (so never inf, never denormal).
inline vf exp(vf x) {
  x = max(min(x, set1(88.3f)), set1(-87.3f));
  const vf n = nearest(mul(x, set1(1.44269504f)));
  vf r = fmadd(n, set1(-0.693145752f), x);
  r = fmadd(n, set1(-1.42860677e-6f), r);
  vf p = set1(1.9875691500e-4f);
  p = fmadd(p, r, set1(1.3981999507e-3f));
  p = fmadd(p, r, set1(8.3334519073e-3f));
  p = fmadd(p, r, set1(4.1665795894e-2f));
  p = fmadd(p, r, set1(1.6666665459e-1f));
  p = fmadd(p, r, set1(5.0000001201e-1f));
  p = add(fmadd(p, mul(r, r), r), set1(1.0f));
  return scale_by_power_of_two(p, n);
}

// x / (1 + e^-x)
inline vf silu(vf x) { return mul(x, inverse(add(set1(1.0f), exp(sub(set1(0.0f), x))))); }

}  // namespace antiphon::ANTIPHON_ISA
