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
#include "kernels.h"
#include "simd.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int64_t kConvChannels = 32, kConvSpan = 640, kConvTimes = 32, kConvWeightBytes = 28 << 10;
constexpr int64_t kConvMaxSteps = kConvWeightBytes / 1024;  // of 16 inputs by 32 outputs of two bytes, the smallest
constexpr int64_t kConvSums = (kConvSpan + kConvTimes) * 16;  // of 16 output channels; times may be rounded up

// Steps [begin, end) of one unit.
struct ConvChunk {
  const char* input;     // row of the unit's first time in the first block of channels
  const char* weights;   // packed, of the unit's output channels
  const char* ahead;     // weights to have in the cache soon, kConvWeightBytes of them, or null
  const int64_t* offsets;
  int64_t num_taps, begin, end, times, channels, plane_bytes, block_bytes;
  int64_t last_block, last_words;  // first step of the last block of input channels, and its words that have channels
  float* sums;           // [2][kConvSums], each [times][16]

  // Where the input of each step is, in bytes from that of the first one of all.
  void step_offsets(int64_t (&at)[kConvMaxSteps]) const {
    for (int64_t s = begin; s < end; ++s) at[s - begin] = s / num_taps * block_bytes + offsets[s % num_taps] * 64;
  }
};

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
  const vf scale = set1(a.scale);
  for (int64_t block = co / 16; block < min64(blocks, co / 16 + 2); ++block, sums += kConvSums) {
    const int64_t first = ((batch * blocks + block) * length + t * a.stride + phase) * 16;
    for (int64_t lane = 0; lane < 16; lane += VF) {
      const vf bias = load(a.bias + block * 16 + lane);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t at = first + i * a.stride * 16 + lane;
        vf y = add(load(sums + i * 16 + lane), bias);
        if (a.residual) y = add(load(a.residual + at), y);
        if (a.total) y = add(load(a.total + at), y);
        store(a.out + at, mul(y, scale));
      }
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
                rows.padded_length * 64 * rows.planes, (rows.blocks() - 1) * p.num_taps, rows.last_words(), sums};
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
