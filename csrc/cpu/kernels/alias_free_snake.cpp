// BigVGAN's anti-aliased SnakeBeta in one pass: up by 2 (12 taps), x + inv_beta sin^2(alpha x), down by 2 (12 taps).
//
// The doubled signal exists only as two tiles in the first-level cache, its even and its odd samples:
//     even[t] = 2 sum_j x[t + 2 - j] up[1 + 2j]      odd[t] = 2 sum_j x[t + 3 - j] up[2j]           j = 0..5
//     out[t]  = sum_j even[t - 2 + j] down[1 + 2j] + odd[t - 3 + j] down[2j]
// x is repeated beyond its ends before the up filter; the activated signal is repeated before the down filter, so
// even and odd before t = 0 are even[0], and from t = T on odd[T - 1].
// Threads own (channel row, tile) units; every output is computed by the same operations wherever its tile begins.
#include "kernels.h"
#include "simd.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

constexpr int64_t kTile = 1024;
constexpr int64_t kHalo = 3;                 // activated samples needed on either side of an output
constexpr int64_t kPad = 16;                 // whole vectors may be read and written past the tile
constexpr int64_t kInput = kTile + 4 * kHalo + 2 * kPad;
constexpr float kLargestVector = 1e5f;       // beyond it, the three-part reduction loses bits: take the slow path

// sin(y)^2, |error| < 4e-7: y minus the nearest multiple of pi (the square has period pi), then an odd polynomial.
inline vf sin_squared(vf y) {
  const vf n = nearest(mul(y, set1(0.318309886f)));
  vf r = fmadd(n, set1(-3.140625f), y);
  r = fmadd(n, set1(-9.67502593994140625e-4f), r);
  r = fmadd(n, set1(-1.50995798e-7f), r);
  const vf z = mul(r, r);
  vf p = set1(-2.3868346521e-8f);
  p = fmadd(p, z, set1(2.7523971068e-6f));
  p = fmadd(p, z, set1(-1.9840782426e-4f));
  p = fmadd(p, z, set1(8.3333303767e-3f));
  p = fmadd(p, z, set1(-1.6666666641e-1f));
  const vf s = fmadd(mul(p, z), r, r);
  return mul(s, s);
}

// In place on n samples; `alpha * x` may be large in a channel with a steep alpha.
void activate(float* x, int64_t n, float alpha, float inv_beta) {
  vf largest = set1(0.0f);
  const vf a = set1(alpha), b = set1(inv_beta);
  for (int64_t i = 0; i < n; i += VF) {
    const vf v = load(x + i), y = mul(v, a);
    largest = max(largest, max(y, sub(set1(0.0f), y)));
  }
  if (hmax(largest) < kLargestVector) {
    for (int64_t i = 0; i < n; i += VF) {
      const vf v = load(x + i);
      store(x + i, fmadd(b, sin_squared(mul(v, a)), v));
    }
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    const float s = static_cast<float>(std::sin(static_cast<double>(alpha * x[i])));
    x[i] += inv_beta * (s * s);
  }
}

template <class T>
struct Row {
  const T* x;
  T* out;
  int64_t length;
  float alpha, inv_beta;
};

// Outputs [begin, begin + n) of one row.
template <class T>
void tile(const Row<T>& row, const float* up, const float* down, int64_t begin, int64_t n) {
  alignas(64) float input[kInput], even[kInput], odd[kInput];
  // input[i] = x[begin - 2 * kHalo + i], even/odd[i] at t = begin - kHalo + i
  const int64_t activated = (n + 2 * kHalo + VF - 1) / VF * VF, first = begin - 2 * kHalo;
  for (int64_t i = 0; i < activated + 2 * kHalo; ++i)
    input[i] = widen(row.x[max64(0, min64(first + i, row.length - 1))]);
  for (int64_t i = 0; i < activated; i += VF) {
    vf e = set1(0.0f), o = set1(0.0f);
    for (int j = 0; j < 6; ++j) {
      e = fmadd(load(input + i + kHalo + 2 - j), set1(2.0f * up[1 + 2 * j]), e);
      o = fmadd(load(input + i + kHalo + 3 - j), set1(2.0f * up[2 * j]), o);
    }
    store(even + i, e);
    store(odd + i, o);
  }
  activate(even, activated, row.alpha, row.inv_beta);
  activate(odd, activated, row.alpha, row.inv_beta);
  const int64_t start = begin - kHalo;
  for (int64_t i = 0; i < kHalo && start + i < 0; ++i) even[i] = odd[i] = even[-start];
  const int64_t last = row.length - 1 - start;
  for (int64_t i = last + 1; i < activated + kHalo; ++i) even[i] = odd[i] = odd[last];
  for_vectors(n, [&](int64_t i, int64_t count) {
    vf sum = set1(0.0f);
    for (int j = 0; j < 6; ++j) {
      sum = fmadd(load(even + i + 1 + j), set1(down[1 + 2 * j]), sum);
      sum = fmadd(load(odd + i + j), set1(down[2 * j]), sum);
    }
    store_upto(row.out + begin + i, sum, count);
  });
}

template <class T>
void run(const AliasFreeSnakeArgs& a, int index, int count) {
  const int64_t tiles = (a.length + kTile - 1) / kTile;
  const Range range = partition(a.num_rows * tiles, 1, index, count);
  for (int64_t unit = range.begin; unit < range.end; ++unit) {
    const int64_t r = unit / tiles, begin = unit % tiles * kTile, channel = r % a.channels;
    const Row<T> row{static_cast<const T*>(a.x) + r * a.length, static_cast<T*>(a.out) + r * a.length, a.length,
                     a.alpha[channel], a.inv_beta[channel]};
    tile(row, a.up_filter, a.down_filter, begin, min64(kTile, a.length - begin));
  }
}

}  // namespace

void alias_free_snake(const AliasFreeSnakeArgs& a, int index, int count) {
  a.dtype == DType::f32 ? run<float>(a, index, count) : run<bf16>(a, index, count);
}

}  // namespace antiphon::ANTIPHON_ISA
