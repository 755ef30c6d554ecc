// Between channel-major tensors and the layouts of the convolutions (kernels.h): rows of channels and sheets.
#include "kernels.h"
#include "simd.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

constexpr int64_t kSpan = 64;  // times at once: what is written stays in the first-level cache until it is whole
constexpr int64_t kSheet = 16;  // channels of a row of a sheet

// f(block, first time, times) for this thread's share of blocks of channels.
template <class F>
void for_spans(int64_t blocks, int64_t length, int index, int count, const F& f) {
  const int64_t spans = (length + kSpan - 1) / kSpan;
  const Range range = partition(blocks * spans, 1, index, count);
  for (int64_t unit = range.begin; unit < range.end; ++unit) {
    const int64_t t = unit % spans * kSpan;
    f(unit / spans, t, min64(kSpan, length - t));
  }
}

// put(time, first channel, VF channels) for `times` times of `channels` channels, x that of the first channel and time;
// zeros for those from `held` on.
template <class T, class Put>
void to_rows(const T* x, int64_t length, int64_t held, int64_t channels, int64_t times, const Put& put) {
  for (int64_t i = 0; i < times; i += VF)
    for (int64_t c = 0; c < channels; c += VF) {
      const int64_t n = min64(VF, times - i);
      vf v[VF];
      for (int64_t j = 0; j < VF; ++j) v[j] = c + j < held ? load_upto(x + (c + j) * length + i, n) : set1(0.0f);
      transpose(v);
      for (int64_t j = 0; j < n; ++j) put(i + j, c, v[j]);
    }
}

template <class T>
void fill_rows(const ConvRowsArgs& a, int index, int count) {
  const ConvRows& r = a.rows;
  const int64_t channels = r.pairs ? 32 : 16;
  for_spans(r.batch * r.blocks(), r.length, index, count, [&](int64_t unit, int64_t t, int64_t times) {
    const int64_t n = unit / r.blocks(), block = unit % r.blocks(), held = min64(channels, r.channels - block * channels);
    const T* x = static_cast<const T*>(a.x) + (n * r.channels + block * channels) * r.length + t;
    if (t == 0) r.clear_padding(n, block);
    char *high = r.row(n, block, 0) + t * 64, *low = r.row(n, block, r.planes - 1) + t * 64;
    to_rows(x, r.length, held, channels, times, [&](int64_t i, int64_t c, vf v) {
      if (!r.pairs) return store(reinterpret_cast<float*>(high + i * 64) + c, v);
      if (r.planes == 2) store(reinterpret_cast<bf16*>(low + i * 64) + c, sub(v, through<bf16>(v)));
      store(reinterpret_cast<bf16*>(high + i * 64) + c, v);
    });
  });
}

template <class T>
void convert_sheet(const ConvSheetArgs& a, int index, int count) {
  const int64_t blocks = (a.channels + kSheet - 1) / kSheet;
  for_spans(a.batch * blocks, a.length, index, count, [&](int64_t unit, int64_t t, int64_t times) {
    const int64_t channel = unit % blocks * kSheet, held = min64(kSheet, a.channels - channel);
    T* x = static_cast<T*>(a.x) + (unit / blocks * a.channels + channel) * a.length + t;
    float* sheet = a.sheet + (unit * a.length + t) * kSheet;
    if (a.to_sheet)
      return to_rows(x, a.length, held, kSheet, times, [&](int64_t i, int64_t c, vf v) { store(sheet + i * kSheet + c, v); });
    for (int64_t i = 0; i < times; i += VF)
      for (int64_t c = 0; c < held; c += VF) {
        const int64_t n = min64(VF, times - i);
        vf v[VF];
        for (int64_t j = 0; j < VF; ++j) v[j] = j < n ? load(sheet + (i + j) * kSheet + c) : set1(0.0f);
        transpose(v);
        for (int64_t j = 0; j < min64(VF, held - c); ++j) store_upto(x + (c + j) * a.length + i, v[j], n);
      }
  });
}

}  // namespace

void conv1d_rows(const ConvRowsArgs& a, int index, int count) {
  a.dtype == DType::f32 ? fill_rows<float>(a, index, count) : fill_rows<bf16>(a, index, count);
}

void conv1d_sheet(const ConvSheetArgs& a, int index, int count) {
  a.dtype == DType::f32 ? convert_sheet<float>(a, index, count) : convert_sheet<bf16>(a, index, count);
}

}  // namespace antiphon::ANTIPHON_ISA
