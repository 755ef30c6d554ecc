// What the convolutions share: units of work of 32 output channels whose weights pass in chunks, and how results end.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int64_t kConvChannels = 32, kConvWeightBytes = 28 << 10;
constexpr int64_t kPairElements = 1024;  // packed weights of bfloat16: 32 inputs by 32 outputs, one plane
constexpr int64_t kConvMaxSteps = kConvWeightBytes / 1024;  // of 16 inputs by 32 outputs of two bytes, the smallest

// Steps [begin, end) of one unit.
struct ConvChunk {
  const char* input;     // row of the unit's first time in the first block of channels
  const char* weights;   // packed, of the unit's output channels
  const char* ahead;     // weights to have in the cache soon, kConvWeightBytes of them, or null
  const int64_t* offsets;
  int64_t num_taps, begin, end, times, channels, plane_bytes, block_bytes;
  int64_t last_block, last_words;  // first step of the last block of input channels, and its words that have channels
  float* sums;           // [times][16] of the first 16 output channels, the others `half` elements further
  int64_t half;

  // Where the input of each step is, in bytes from that of the first one of all.
  void step_offsets(int64_t (&at)[kConvMaxSteps]) const {
    for (int64_t s = begin; s < end; ++s) at[s - begin] = s / num_taps * block_bytes + offsets[s % num_taps] * 64;
  }
};

// From sums of VF channels to results.
struct ConvEnd {
  const float *residual, *total;  // sheets, or null
  float* out;
  vf bias, scale;

  // `at` is the place in the sheets.
  void operator()(vf sum, int64_t at) const {
    vf y = add(sum, bias);
    if (residual) y = add(load(residual + at), y);
    if (total) y = add(load(total + at), y);
    store(out + at, mul(y, scale));
  }
};

}  // namespace antiphon::ANTIPHON_ISA
