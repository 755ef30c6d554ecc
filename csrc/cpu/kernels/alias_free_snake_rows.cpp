// The anti-aliased SnakeBeta of alias_free_snake.cpp from a sheet to the rows that a convolution reads: lanes are
// channels, so every load is aligned and the bfloat16 parts are written where the convolution wants them.
//
// A unit of work is one block of channels of the rows over kSpan times.
#include "alias_free_snake.h"
#include "kernels.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

constexpr int64_t kSpan = 128;

// VF channels from `lane` of a block of 16 on.
struct Lanes {
  const float* sheet;  // this block's, at `lane`
  int64_t length, channels;  // how many of the VF exist
  const float *alpha, *inv_beta;
  float gain;
};

// input[i] = x[first + i] of every lane, x repeated beyond its ends; true if the fast reduction holds.
bool copy_input(const Lanes& l, int64_t first, int64_t n, float* input) {
  vf largest = set1(0.0f);
  for (int64_t i = 0; i < n; ++i) {
    const vf v = load(l.sheet + max64(0, min64(first + i, l.length - 1)) * 16);
    largest = max(largest, max(v, negate(v)));
    store(input + i * VF, v);
  }
  float steepest = 0.0f;
  for (int64_t c = 0; c < l.channels; ++c) steepest = std::fmax(steepest, std::fabs(l.alpha[c]));
  return hmax(largest) * l.gain * steepest < kLargestTurns;
}

template <bool kActivate>
void upsample(const float* input, int64_t n, const Filters& f, const Snake& snake, float* even, float* odd) {
  for (int64_t i = 0; i < n; ++i) {
    const float* x = input + i * VF;
    vf e = mul(load(x + 5 * VF), f.up_even.tap[0]), o = mul(load(x + 6 * VF), f.up_odd.tap[0]);
    for (int j = 1; j < 6; ++j) {
      e = fmadd(load(x + (5 - j) * VF), f.up_even.tap[j], e);
      o = fmadd(load(x + (6 - j) * VF), f.up_odd.tap[j], o);
    }
    store(even + i * VF, kActivate ? snake(e) : e);
    store(odd + i * VF, kActivate ? snake(o) : o);
  }
}

void activate_any(const Lanes& l, float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < l.channels; ++c) x[i * VF + c] = snake_of_any(x[i * VF + c], l.alpha[c], l.inv_beta[c]);
}

// One time's value to the row at `to` (bfloat16, the low part `low` elements further, 0: none) or float32.
inline void put(vf y, bf16* to, int64_t low) {
  store(to, y);
  if (low) store(to + low, sub(y, load(to)));
}
inline void put(vf y, float* to, int64_t) { store(to, y); }

// Outputs [begin, begin + n), `stride` elements apart from `to` on. Index i of `input` is time begin - 6 + i, of even and
// odd begin - 3 + i.
template <class Out>
void span(const Lanes& l, const Filters& f, int64_t begin, int64_t n, Out* to, int64_t stride, int64_t low) {
  alignas(64) float input[(kSpan + 4 * kHalo) * VF], even[(kSpan + 2 * kHalo) * VF], odd[(kSpan + 2 * kHalo) * VF];
  const Snake snake = Snake::of(l.alpha, l.inv_beta, l.channels);
  const int64_t activated = n + 2 * kHalo, start = begin - kHalo;
  if (copy_input(l, begin - 2 * kHalo, n + 4 * kHalo, input)) {
    upsample<true>(input, activated, f, snake, even, odd);
  } else {
    upsample<false>(input, activated, f, snake, even, odd);
    activate_any(l, even, activated);
    activate_any(l, odd, activated);
  }
  for (int64_t i = 0; start + i < 0; ++i)
    store(even + i * VF, load(even - start * VF)), store(odd + i * VF, load(even - start * VF));
  const int64_t last = l.length - 1 - start;
  for (int64_t i = last + 1; i < activated; ++i)
    store(even + i * VF, load(odd + last * VF)), store(odd + i * VF, load(odd + last * VF));
  for (int64_t i = 0; i < n; ++i) {
    const float *p = even + (i + 1) * VF, *q = odd + i * VF;
    vf e = mul(load(p), f.down_even.tap[0]), o = mul(load(q), f.down_odd.tap[0]);
    for (int j = 1; j < 6; ++j) {
      e = fmadd(load(p + j * VF), f.down_even.tap[j], e);
      o = fmadd(load(q + j * VF), f.down_odd.tap[j], o);
    }
    put(add(e, o), to + i * stride, low);
  }
}

void zero_lanes(char* row, int64_t n, int64_t bytes) {
  for (int64_t i = 0; i < n; ++i) std::memset(row + i * 64, 0, bytes);
}

}  // namespace

void alias_free_snake_rows(const SnakeRowsArgs& a, int, int) {
  const ConvRows& r = a.rows;
  const Filters filters(a.up_filter, a.down_filter);
  const float largest_gain = gain(a.up_filter);
  const int64_t spans = (r.length + kSpan - 1) / kSpan, units = r.batch * r.blocks() * spans;
  const int64_t sheets = (r.channels + 15) / 16, per_row = r.pairs ? 32 : 16, element = 64 / per_row;
  const int64_t low = r.planes == 2 ? r.padded_length * 32 : 0;
  for (int64_t unit; (unit = a.next->fetch_add(1, std::memory_order_relaxed)) < units;) {
    const int64_t begin = unit % spans * kSpan, n = min64(kSpan, r.length - begin);
    const int64_t block = unit / spans % r.blocks(), batch = unit / spans / r.blocks();
    for (int64_t lane = 0; lane < per_row; lane += VF) {
      const int64_t channel = block * per_row + lane;
      char* to = r.row(batch, block, 0) + begin * 64 + lane * element;
      if (channel >= r.channels) {
        zero_lanes(to, n, VF * element);
        if (low) zero_lanes(to + low * 2, n, VF * element);
        continue;
      }
      const Lanes lanes{a.sheet + (batch * sheets + channel / 16) * r.length * 16 + channel % 16, r.length,
                        min64(VF, r.channels - channel), a.alpha + channel, a.inv_beta + channel, largest_gain};
      r.pairs ? span(lanes, filters, begin, n, reinterpret_cast<bf16*>(to), 32, low)
              : span(lanes, filters, begin, n, reinterpret_cast<float*>(to), 16, low);
    }
  }
}

}  // namespace antiphon::ANTIPHON_ISA
