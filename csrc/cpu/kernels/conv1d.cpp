// 1-D convolution that keeps the length, with bias and residual: out = residual + bias + sum over taps and channels of
// w[co][ci][j] x[ci][t + j dilation - padding]. An implicit matrix product, never a stored one.
//
// With AMX (conv1d_amx.h) float32 operands are split into two bfloat16 parts each and three of the four products kept,
// which leaves a relative error near 2^-16 of the largest terms. Elsewhere a block of 4 output channels by 4 vectors of
// time accumulates in float32. Each output sums taps, then channels, in one order, whatever the threads.
#include "kernels.h"
#include "simd.h"
#if defined(__AMX_BF16__)
#include "conv1d_amx.h"
#endif

namespace antiphon::ANTIPHON_ISA {
namespace {

constexpr int kConvRows = 4;

// out[channel][t] for `rows` channels from `co` on and n <= VF times from t on; the padding is zero.
template <class T>
void conv_block(const Conv1dArgs& a, int64_t batch, int64_t co, int64_t rows, int64_t t, int64_t n) {
  const T* x = static_cast<const T*>(a.x) + batch * a.in_channels * a.length;
  const T* w = static_cast<const T*>(a.weight) + co * a.in_channels * a.taps;
  vf sum[kConvRows];
  for (auto& s : sum) s = set1(0.0f);
  for (int64_t j = 0; j < a.taps; ++j) {
    const int64_t first = t + j * a.dilation - a.padding;
    const bool inside = first >= 0 && first + n <= a.length;
    for (int64_t ci = 0; ci < a.in_channels; ++ci) {
      const T* channel = x + ci * a.length;
      vf v;
      if (inside) {
        v = load_upto(channel + first, n);
      } else {
        float lanes[VF] = {};
        for (int64_t i = 0; i < n; ++i)
          if (first + i >= 0 && first + i < a.length) lanes[i] = widen(channel[first + i]);
        v = load(lanes);
      }
      for (int64_t r = 0; r < rows; ++r)
        sum[r] = fmadd(set1(widen(w[(r * a.in_channels + ci) * a.taps + j])), v, sum[r]);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = (batch * a.out_channels + co + r) * a.length + t;
    const float bias = a.bias ? widen(static_cast<const T*>(a.bias)[co + r]) : 0.0f;
    vf y = add(sum[r], set1(bias));
    if (a.residual) y = add(through<T>(y), load_upto(static_cast<const T*>(a.residual) + at, n));
    store_upto(static_cast<T*>(a.out) + at, y, n);
  }
}

template <class T>
void run(const Conv1dArgs& a, int index, int count) {
#if defined(__AMX_BF16__)
  return conv_tiles<T>(a, index, count);
#endif
  const int64_t blocks = (a.out_channels + kConvRows - 1) / kConvRows;
  const int64_t times = (a.length + VF - 1) / VF;
  const Range range = partition(a.batch * blocks * times, 1, index, count);
  for (int64_t unit = range.begin; unit < range.end; ++unit) {
    const int64_t co = unit / times % blocks * kConvRows, t = unit % times * VF;
    conv_block<T>(a, unit / times / blocks, co, min64(kConvRows, a.out_channels - co), t, min64(VF, a.length - t));
  }
}

}  // namespace

void conv1d(const Conv1dArgs& a, int index, int count) {
  a.dtype == DType::f32 ? run<float>(a, index, count) : run<bf16>(a, index, count);
}

}  // namespace antiphon::ANTIPHON_ISA
