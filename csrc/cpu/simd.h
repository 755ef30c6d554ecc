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
#if defined(__AMX_TILE__) && defined(ANTIPHON_EMULATE_TILES)
#include "emulated_tiles.h"
#endif

#include "sanitized.h"

// Zen 4 and 5 have ports for additions beside those for products, Intel's 512-bit ones share them: told by what only the
// former have, BF16 and no tiles (and Cooper Lake, where results are the same and nothing is won).
#if defined(__AVX512BF16__) && !defined(__AMX_TILE__)
#define ANTIPHON_ADDS_BESIDE_PRODUCTS 1
#else
#define ANTIPHON_ADDS_BESIDE_PRODUCTS 0
#endif

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

// Two neighbours as one word.
inline int32_t pair_at(const bf16* p) {
  int32_t pair;
  std::memcpy(&pair, p, 4);
  return pair;
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

// N vectors, each operation on all of them before the next one: a processor does not look far enough ahead to find so much
// that is independent in N calls one behind the other.
template <int N>
struct Batch {
  vf v[N];
};
template <int N, class F>
inline Batch<N> batch(const F& f) {
  Batch<N> out;
  for (int i = 0; i < N; ++i) out.v[i] = f(i);
  return out;
}
template <int N>
inline Batch<N> add(Batch<N> a, Batch<N> b) { return batch<N>([&](int i) { return add(a.v[i], b.v[i]); }); }
template <int N>
inline Batch<N> sub(Batch<N> a, Batch<N> b) { return batch<N>([&](int i) { return sub(a.v[i], b.v[i]); }); }
template <int N>
inline Batch<N> mul(Batch<N> a, Batch<N> b) { return batch<N>([&](int i) { return mul(a.v[i], b.v[i]); }); }
template <int N>
inline Batch<N> min(Batch<N> a, Batch<N> b) { return batch<N>([&](int i) { return min(a.v[i], b.v[i]); }); }
template <int N>
inline Batch<N> max(Batch<N> a, Batch<N> b) { return batch<N>([&](int i) { return max(a.v[i], b.v[i]); }); }
template <int N>
inline Batch<N> fmadd(Batch<N> a, Batch<N> b, Batch<N> c) {
  return batch<N>([&](int i) { return fmadd(a.v[i], b.v[i], c.v[i]); });
}
template <int N>
inline Batch<N> nearest(Batch<N> a) { return batch<N>([&](int i) { return nearest(a.v[i]); }); }
template <int N>
inline Batch<N> inverse(Batch<N> a) { return batch<N>([&](int i) { return inverse(a.v[i]); }); }
template <int N>
inline Batch<N> scale_by_power_of_two(Batch<N> a, Batch<N> n) {
  return batch<N>([&](int i) { return scale_by_power_of_two(a.v[i], n.v[i]); });
}

// x in every lane of a vector or a batch.
template <class V>
struct Splat {
  static V of(float x) { return set1(x); }
};
template <int N>
struct Splat<Batch<N>> {
  static Batch<N> of(float x) { return batch<N>([&](int) { return set1(x); }); }
};

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

constexpr float kLog2E = 1.44269504f;

// (2^f - 1) / f for |f| <= 1/2, highest coefficient first: 2^f to 3e-6, enough where the result is rounded to bfloat16,
// and to 1e-7.
constexpr float kCoarse[] = {9.58283011e-3f, 5.59063997e-2f, 2.40240988e-1f, 6.93124196e-1f};
constexpr float kFine[] = {1.53533620e-4f, 1.33988750e-3f, 9.61843692e-3f, 5.55033237e-2f, 2.40226477e-1f, 6.93147182e-1f};

template <std::size_t kSize, class V>
inline V exp2(const float (&coefficients)[kSize], V x) {
  constexpr auto all = Splat<V>::of;
  x = max(x, all(-126.0f));
  const V n = nearest(x), f = sub(x, n);
  V p = all(coefficients[0]);
  for (std::size_t i = 1; i < kSize; ++i) p = fmadd(p, f, all(coefficients[i]));
  return scale_by_power_of_two(fmadd(p, f, all(1.0f)), n);
}

// 2^x for -126 <= x < 127, clamped below, where the result will be rounded to T; 2^0 is exactly 1.
template <class T, class V>
inline V exp2(V x) { return sizeof(T) == 2 ? exp2(kCoarse, x) : exp2(kFine, x); }

}  // namespace antiphon::ANTIPHON_ISA
