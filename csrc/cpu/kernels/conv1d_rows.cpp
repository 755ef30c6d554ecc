// Between channel-major tensors and the layouts of the convolutions (kernels.h): rows of channels and sheets.
#include "kernels.h"
#include "simd.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

constexpr int64_t kSpan = 64;  // times at once: what is written stays in the first-level cache until it is whole

template <class T>
void write_pairs(const T* x, const ConvRows& r, int64_t n, int64_t block, int64_t t, int64_t times) {
  bf16* high = reinterpret_cast<bf16*>(r.row(n, block, 0)) + t * 32;
  bf16* low = reinterpret_cast<bf16*>(r.row(n, block, r.planes - 1)) + t * 32;
  for (int64_t c = 0; c < 32; ++c) {
    const bool exists = block * 32 + c < r.channels;
    for (int64_t i = 0; i < times; ++i) {
      const float v = exists ? widen(x[(block * 32 + c) * r.length + t + i]) : 0.0f;
      const bf16 rounded = round_bf16(v);
      if (r.planes == 2) low[i * 32 + c] = round_bf16(v - widen(rounded));
      high[i * 32 + c] = rounded;
    }
  }
}

template <class T>
void write_floats(const T* x, const ConvRows& r, int64_t n, int64_t block, int64_t t, int64_t times) {
  float* rows = reinterpret_cast<float*>(r.row(n, block, 0)) + t * 16;
  for (int64_t c = 0; c < 16; ++c) {
    const bool exists = block * 16 + c < r.channels;
    for (int64_t i = 0; i < times; ++i) rows[i * 16 + c] = exists ? widen(x[(block * 16 + c) * r.length + t + i]) : 0.0f;
  }
}

template <class T>
void fill_rows(const ConvRowsArgs& a, int index, int count) {
  const ConvRows& r = a.rows;
  const Range range = partition(r.batch * r.blocks(), 1, index, count);
  for (int64_t unit = range.begin; unit < range.end; ++unit) {
    const int64_t n = unit / r.blocks(), block = unit % r.blocks();
    const T* x = static_cast<const T*>(a.x) + n * r.channels * r.length;
    r.clear_padding(n, block);
    for (int64_t t = 0; t < r.length; t += kSpan) {
      const int64_t times = min64(kSpan, r.length - t);
      r.pairs ? write_pairs(x, r, n, block, t, times) : write_floats(x, r, n, block, t, times);
    }
  }
}

template <class T>
void convert_sheet(const ConvSheetArgs& a, int index, int count) {
  const int64_t blocks = (a.channels + 15) / 16;
  const Range range = partition(a.batch * blocks, 1, index, count);
  for (int64_t unit = range.begin; unit < range.end; ++unit) {
    const int64_t n = unit / blocks, channel = unit % blocks * 16, held = min64(16, a.channels - channel);
    T* x = static_cast<T*>(a.x) + (n * a.channels + channel) * a.length;
    float* sheet = a.sheet + unit * a.length * 16;
    for (int64_t t = 0; t < a.length; t += kSpan)
      for (int64_t c = 0; c < 16; ++c)
        for (int64_t i = t; i < min64(t + kSpan, a.length); ++i) {
          if (a.to_sheet) {
            sheet[i * 16 + c] = c < held ? widen(x[c * a.length + i]) : 0.0f;
          } else if (c < held) {
            if constexpr (sizeof(T) == 4) x[c * a.length + i] = sheet[i * 16 + c];
            else x[c * a.length + i] = round_bf16(sheet[i * 16 + c]);
          }
        }
  }
}

}  // namespace

void conv1d_rows(const ConvRowsArgs& a, int index, int count) {
  a.dtype == DType::f32 ? fill_rows<float>(a, index, count) : fill_rows<bf16>(a, index, count);
}

void conv1d_sheet(const ConvSheetArgs& a, int index, int count) {
  a.dtype == DType::f32 ? convert_sheet<float>(a, index, count) : convert_sheet<bf16>(a, index, count);
}

}  // namespace antiphon::ANTIPHON_ISA
