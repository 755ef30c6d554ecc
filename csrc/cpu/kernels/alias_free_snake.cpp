// BigVGAN's anti-aliased SnakeBeta in one pass: up by 2 (12 taps), x + inv_beta sin^2(alpha x), down by 2 (12 taps).
//
// The doubled signal exists only as two tiles in the first-level cache, its even and its odd samples:
//     even[t] = 2 sum_j x[t + 2 - j] up[1 + 2j]      odd[t] = 2 sum_j x[t + 3 - j] up[2j]           j = 0..5
//     out[t]  = sum_j even[t - 2 + j] down[1 + 2j] + odd[t - 3 + j] down[2j]
// x is repeated beyond its ends before the up filter; the activated signal is repeated before the down filter, so
// even and odd before t = 0 are even[0], and from t = T on odd[T - 1].
// Threads own (channel row, tile) units; every output is computed by the same operations wherever its tile begins.
#include "alias_free_snake.h"
#include "kernels.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

constexpr int64_t kTile = 1024;
constexpr int64_t kPad = 2 * VF + kHalo;  // whole vectors may be read and written past the tile

template <class T>
struct Row {
  const T* x;
  T* out;
  int64_t length;
  float alpha, inv_beta, gain;
};

// input[i] = x[first + i] for i < n, x repeated beyond its ends; returns the largest |input|.
template <class T>
float copy_input(const Row<T>& row, int64_t first, int64_t n, float* input) {
  const int64_t begin = max64(0, -first), end = max64(begin, min64(n, row.length - first));
  vf largest = set1(0.0f);
  for_vectors(end - begin, [&](int64_t i, int64_t count) {
    const vf v = load_upto(row.x + first + begin + i, count);
    store_upto(input + begin + i, v, count);
    largest = max(largest, max(v, negate(v)));
  });
  for (int64_t i = 0; i < begin; ++i) input[i] = widen(row.x[0]);
  for (int64_t i = end; i < n; ++i) input[i] = widen(row.x[row.length - 1]);
  return hmax(largest);
}

// even/odd[i] of i < n from input[i ..]: the up filter and, where `activate`, the activation.
template <bool kActivate>
void upsample(const float* input, int64_t n, const Filters& f, const Snake& snake, float* even, float* odd) {
  for (int64_t i = 0; i < n; i += VF) {
    vf e = mul(load(input + i + 5), f.up_even.tap[0]), o = mul(load(input + i + 6), f.up_odd.tap[0]);
    for (int j = 1; j < 6; ++j) {
      const vf v = load(input + i + 6 - j);
      o = fmadd(v, f.up_odd.tap[j], o);
      e = fmadd(load(input + i + 5 - j), f.up_even.tap[j], e);
    }
    store(even + i, kActivate ? snake(e) : e);
    store(odd + i, kActivate ? snake(o) : o);
  }
}

// Outputs [begin, begin + n) of one row. Index i of `input` is time begin - 6 + i, of even and odd begin - 3 + i.
template <class T>
void tile(const Row<T>& row, const Filters& f, const Snake& snake, int64_t begin, int64_t n) {
  alignas(64) float input[kTile + 4 * kHalo + kPad], even[kTile + 2 * kHalo + kPad], odd[kTile + 2 * kHalo + kPad];
  const int64_t activated = n + 2 * kHalo, start = begin - kHalo;
  const int64_t whole = (activated + VF - 1) / VF * VF;
  const float largest = copy_input(row, begin - 2 * kHalo, whole + 2 * kHalo, input);
  if (largest * row.gain * std::fabs(row.alpha) < kLargestTurns) {
    upsample<true>(input, whole, f, snake, even, odd);
  } else {
    upsample<false>(input, whole, f, snake, even, odd);
    for (int64_t i = 0; i < activated; ++i) {
      even[i] = snake_of_any(even[i], row.alpha, row.inv_beta);
      odd[i] = snake_of_any(odd[i], row.alpha, row.inv_beta);
    }
  }
  for (int64_t i = 0; start + i < 0; ++i) even[i] = odd[i] = even[-start];
  const int64_t last = row.length - 1 - start;
  for (int64_t i = last + 1; i < activated; ++i) even[i] = odd[i] = odd[last];
  for_vectors(n, [&](int64_t i, int64_t count) {
    vf e = mul(load(even + i + 1), f.down_even.tap[0]), o = mul(load(odd + i), f.down_odd.tap[0]);
    for (int j = 1; j < 6; ++j) {
      e = fmadd(load(even + i + 1 + j), f.down_even.tap[j], e);
      o = fmadd(load(odd + i + j), f.down_odd.tap[j], o);
    }
    store_upto(row.out + begin + i, add(e, o), count);
  });
}

template <class T>
void run(const AliasFreeSnakeArgs& a, int index, int count) {
  const Filters filters(a.up_filter, a.down_filter);
  const int64_t tiles = (a.length + kTile - 1) / kTile;
  const Range range = partition(a.num_rows * tiles, 1, index, count);
  for (int64_t unit = range.begin; unit < range.end; ++unit) {
    const int64_t r = unit / tiles, begin = unit % tiles * kTile, channel = r % a.channels;
    const Row<T> row{static_cast<const T*>(a.x) + r * a.length, static_cast<T*>(a.out) + r * a.length, a.length,
                     a.alpha[channel], a.inv_beta[channel], gain(a.up_filter)};
    tile(row, filters, Snake::all(row.alpha, row.inv_beta), begin, min64(kTile, a.length - begin));
  }
}

}  // namespace

void alias_free_snake(const AliasFreeSnakeArgs& a, int index, int count) {
  a.dtype == DType::f32 ? run<float>(a, index, count) : run<bf16>(a, index, count);
}

}  // namespace antiphon::ANTIPHON_ISA
