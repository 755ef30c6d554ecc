// 1-D convolutions of few channels in vectors of times: where channels are fewer than lanes, rows of channels (conv1d.cpp)
// would mostly be padding.
//
// A unit of work is kSpan times. Its inputs are copied with what reaches beyond them, zeros outside, so that every output
// is made in the same way: one sum over input channels and taps, in order, whatever the threads and its place.
#include "kernels.h"
#include "simd.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

constexpr int64_t kSpan = 256, kOuts = 4, kVectors = VF == 16 ? 4 : 2;  // kOuts * kVectors sums

// Rows [in_channels][width] of times [begin - reach, begin + n + reach), zero outside and past them.
void copy_span(const ThinConvArgs& a, int64_t batch, int64_t begin, int64_t n, int64_t reach, int64_t width, float* to) {
  const int64_t first = max64(0, begin - reach), last = min64(a.length, begin + n + reach), skipped = first - (begin - reach);
  for (int64_t c = 0; c < a.in_channels; ++c, to += width) {
    std::memset(to, 0, skipped * sizeof(float));
    std::memcpy(to + skipped, a.x + (batch * a.in_channels + c) * a.length + first, (last - first) * sizeof(float));
    std::memset(to + skipped + last - first, 0, (width - skipped - (last - first)) * sizeof(float));
  }
}

// Sums of kOuts output channels and kVectors vectors of times from `x` on, which is the first tap's first input.
void products(const ThinConvArgs& a, const float* x, int64_t width, const float* w, const float* bias,
              vf (&sum)[kOuts][kVectors]) {
  for (int64_t o = 0; o < kOuts; ++o)
    for (int64_t v = 0; v < kVectors; ++v) sum[o][v] = set1(bias[o]);
  for (int64_t c = 0; c < a.in_channels; ++c, x += width)
    for (int64_t j = 0; j < a.taps; ++j, w += kOuts) {
      vf inputs[kVectors];
      for (int64_t v = 0; v < kVectors; ++v) inputs[v] = load(x + j * a.dilation + v * VF);
      for (int64_t o = 0; o < kOuts; ++o)
        for (int64_t v = 0; v < kVectors; ++v) sum[o][v] = fmadd(set1(w[o]), inputs[v], sum[o][v]);
    }
}

void finish(const ThinConvArgs& a, vf y, int64_t at, int64_t n) {
  if (a.residual) y = add(load_upto(a.residual + at, n), y);
  if (a.total) y = add(load_upto(a.total + at, n), y);
  store_upto(a.out + at, mul(y, set1(a.scale)), n);
}

}  // namespace

void thin_conv1d(const ThinConvArgs& a, int, int) {
  const int64_t reach = (a.taps - 1) / 2 * a.dilation, width = kSpan + 2 * reach, spans = (a.length + kSpan - 1) / kSpan;
  auto* input = static_cast<float*>(scratch(a.in_channels * width * sizeof(float)));
  for (int64_t unit; (unit = a.next->fetch_add(1, std::memory_order_relaxed)) < a.batch * spans;) {
    const int64_t batch = unit / spans, begin = unit % spans * kSpan, n = min64(kSpan, a.length - begin);
    copy_span(a, batch, begin, n, reach, width, input);
    for (int64_t out = 0; out < a.out_channels; out += kOuts)
      for (int64_t t = 0; t < n; t += kVectors * VF) {
        vf sum[kOuts][kVectors];
        products(a, input + t, width, a.packed + out * a.in_channels * a.taps, a.bias + out, sum);
        for (int64_t o = 0; o < min64(kOuts, a.out_channels - out); ++o)
          for (int64_t v = 0; v < kVectors && t + v * VF < n; ++v)
            finish(a, sum[o][v], (batch * a.out_channels + out + o) * a.length + begin + t + v * VF, min64(VF, n - t - v * VF));
      }
  }
}

void convert(const ConvertArgs& a, int index, int count) {
  const Range range = partition(a.size, 64, index, count);
  bf16* values = a.values + range.begin;
  float* floats = a.floats + range.begin;
  for_vectors(range.end - range.begin, [&](int64_t i, int64_t n) {
    a.to_floats ? store_upto(floats + i, load_upto(values + i, n), n) : store_upto(values + i, load_upto(floats + i, n), n);
  });
}

}  // namespace antiphon::ANTIPHON_ISA
