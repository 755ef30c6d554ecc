// 1-D convolutions, plain or transposed, as implicit matrix products over rows of channels (ConvRows): a tap is a shift
// by whole rows, so nothing is ever copied or misaligned. The result is a float32 sheet.
//
// A unit of work is 32 output channels over at most kConvSpan times of one phase. Its steps (a block of input channels
// and a tap) come in chunks whose weights stay in the first-level cache while the times pass by; sums wait in the second
// level. Each output adds its steps in one order, whatever the threads and its place in a tile.
//   AMX (conv1d_amx.h): tiles of 16 times x 32 channels meet 32 x 16 weights. float32 is two bfloat16 planes and three of
//     the four products, an error near 2^-16 of the largest terms.
//   elsewhere, and for few channels in float32 (conv1d_vector.h): fused multiply-adds of broadcast inputs and vectors of
//     output channels, with AVX512-BF16 two inputs at a time.
// Not all come here (vocoder.cpp): float32 without tiles takes half the products in conv1d_winograd.cpp, and up to 16
// channels pass as they lie in conv1d_thin.cpp.
#include "conv1d_chunk.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int64_t kConvSpan = 640, kConvTimes = 32;
constexpr int64_t kConvSums = (kConvSpan + kConvTimes) * 16;  // of 16 output channels; times may be rounded up

}  // namespace antiphon::ANTIPHON_ISA

#include "conv1d_pairs.h"
#include "conv1d_vector.h"
#if defined(__AMX_BF16__)
#include "conv1d_amx.h"
#endif

namespace antiphon::ANTIPHON_ISA {
namespace {

// out = scale * (total + (residual + (sums + bias))) for 32 channels from `co` on and n times.
void store_unit(const Conv1dArgs& a, const float* sums, int64_t batch, int64_t co, int64_t t, int64_t n, int64_t phase) {
  const int64_t blocks = (a.out_channels + 15) / 16, length = a.rows.length * a.stride;
  for (int64_t block = co / 16; block < min64(blocks, co / 16 + 2); ++block, sums += kConvSums) {
    const int64_t first = ((batch * blocks + block) * length + t * a.stride + phase) * 16;
    for (int64_t lane = 0; lane < 16; lane += VF) {
      const ConvEnd end{a.residual, a.total, a.out, load(a.bias + block * 16 + lane), set1(a.scale)};
      for (int64_t i = 0; i < n; ++i) end(load(sums + i * 16 + lane), first + i * a.stride * 16 + lane);
    }
  }
}

template <class T>
void pack(const ConvWeightArgs& a, int index, int count) {
  a.pairs ? pack_pairs<T>(a, index, count) : pack_singles<T>(a, index, count);
}

template <class T>
void chunk_of(const ConvRows& rows, const ConvChunk& c) {
#if defined(__AMX_BF16__)
  if (rows.pairs) return rows.planes == 2 ? tile_chunk<true>(c) : tile_chunk<false>(c);
#elif defined(__AVX512BF16__)
  if (rows.pairs) return vector_chunk<Pairs>(c);
#endif
  vector_chunk<Singles<T>>(c);
  (void)rows;
}

template <class T>
void run(const Conv1dArgs& a) {
  const ConvRows& rows = a.rows;
  const int64_t out_blocks = (a.out_channels + kConvChannels - 1) / kConvChannels;
  const int64_t spans = (rows.length + kConvSpan - 1) / kConvSpan, units = out_blocks * a.stride * rows.batch * spans;
  const int64_t step = rows.pairs ? rows.planes * 2 * kPairElements : 16 * kConvChannels * sizeof(T);
  const int64_t chunk = kConvWeightBytes / step;
  float* sums = static_cast<float*>(scratch(2 * kConvSums * sizeof(float)));
#if defined(__AMX_BF16__)
  if (rows.pairs) configure_tiles(16);
#endif
  for (int64_t unit; (unit = a.next->fetch_add(1, std::memory_order_relaxed)) < units;) {
    const int64_t span = unit % spans, batch = unit / spans % rows.batch, rest = unit / spans / rows.batch;
    const int64_t phase = rest % a.stride, out_block = rest / a.stride, t = span * kConvSpan;
    const ConvPhase& p = a.phases[phase];
    const int64_t steps = p.num_taps * rows.blocks();
    ConvChunk c{rows.row(batch, 0, 0) + t * 64, static_cast<const char*>(p.packed) + out_block * steps * step, nullptr,
                p.offsets, p.num_taps, 0, 0, min64(kConvSpan, rows.length - t),
                min64(kConvChannels, a.out_channels - out_block * kConvChannels), rows.padded_length * 64,
                rows.padded_length * 64 * rows.planes, (rows.blocks() - 1) * p.num_taps, rows.last_words(), sums, kConvSums};
    for (; c.begin < steps; c.begin = c.end) {
      c.end = min64(steps, c.begin + chunk);
      c.ahead = c.end < steps ? c.weights + c.end * step : nullptr;
      chunk_of<T>(rows, c);
    }
    store_unit(a, sums, batch, out_block * kConvChannels, t, c.times, phase);
  }
#if defined(__AMX_BF16__)
  if (rows.pairs) _tile_release();
#endif
}

}  // namespace

void conv1d_weight(const ConvWeightArgs& a, int index, int count) {
  a.dtype == DType::f32 ? pack<float>(a, index, count) : pack<bf16>(a, index, count);
}

void conv1d(const Conv1dArgs& a, int, int) { a.dtype == DType::f32 ? run<float>(a) : run<bf16>(a); }

}  // namespace antiphon::ANTIPHON_ISA
