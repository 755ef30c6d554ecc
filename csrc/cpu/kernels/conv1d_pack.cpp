// Input of conv1d as tiles want it: pairs of channels side by side, bfloat16, zero where the convolution pads.
//
// planes[batch][plane][channel pair][padded_length][2]: plane 0 holds x rounded to bfloat16, plane 1 what the rounding
// left (float32 only). Column t + padding is x[t]. Threads own rows of pairs.
#include "kernels.h"
#include "simd.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

template <class T>
void run(const Conv1dArgs& a, int index, int count) {
  const int64_t pairs = a.padded_channels / 2, row = 2 * a.padded_length, plane = pairs * row;
  const Range range = partition(a.batch * pairs, 1, index, count);
  for (int64_t unit = range.begin; unit < range.end; ++unit) {
    const int64_t n = unit / pairs, pair = unit % pairs;
    const T* x = static_cast<const T*>(a.x) + (n * a.in_channels + 2 * pair) * a.length;
    bf16* high = a.planes + n * a.num_planes * plane + pair * row;
    for (int64_t p = 0; p < a.num_planes; ++p) std::memset(high + p * plane, 0, row * sizeof(bf16));
    for (int64_t c = 0; c < 2; ++c) {
      if (2 * pair + c >= a.in_channels) continue;
      const T* channel = x + c * a.length;
      bf16* out = high + 2 * a.padding + c;
      for (int64_t t = 0; t < a.length; ++t) {
        const float v = widen(channel[t]);
        const bf16 rounded = round_bf16(v);
        out[2 * t] = rounded;
        if (a.num_planes == 2) out[plane + 2 * t] = round_bf16(v - widen(rounded));
      }
    }
  }
}

}  // namespace

void conv1d_pack(const Conv1dArgs& a, int index, int count) {
  a.dtype == DType::f32 ? run<float>(a, index, count) : run<bf16>(a, index, count);
}

}  // namespace antiphon::ANTIPHON_ISA
