// Arguments of the vocoder's convolutions and of what lies around them (kernels.h says how kernels are called).
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>

#include "bf16.h"

namespace antiphon {

// What a convolution reads: [batch][block of channels][plane][padded_length] rows of 64 bytes, zero where there is no
// channel and in the `padding` rows on either side. A row is 32 bfloat16 (AMX, where float32 has two planes, the rounded
// value and what the rounding left; AVX512-BF16) or 16 float32 (one plane) of one time.
struct ConvRows {
  char* data;
  int64_t batch, channels, length, planes, padding, padded_length;
  bool pairs;  // rows of 32 bfloat16, which are multiplied two at a time, in place of 16 float32

  int64_t blocks() const { return (channels + (pairs ? 31 : 15)) / (pairs ? 32 : 16); }
  int64_t bytes() const { return batch * blocks() * planes * padded_length * 64; }
  int64_t last_words() const {  // of 4 bytes that have channels in a row of the last block
    const int64_t held = channels - (blocks() - 1) * (pairs ? 32 : 16);
    return pairs ? (held + 1) / 2 : held;
  }
  char* row(int64_t n, int64_t block, int64_t plane) const {  // of time 0
    return data + (((n * blocks() + block) * planes + plane) * padded_length + padding) * 64;
  }
  void clear_padding(int64_t n, int64_t block) const {
    for (int64_t plane = 0; plane < planes; ++plane) {
      char* first = row(n, block, plane);
      std::memset(first - padding * 64, 0, padding * 64);
      std::memset(first + length * 64, 0, (padded_length - padding - length) * 64);
    }
  }
};

struct ConvRowsArgs {
  DType dtype;
  const void* x;  // [batch, channels, length]
  ConvRows rows;  // padding and the rest included
};

// A sheet is float32 [batch][channels / 16, rounded up][length][16].
struct ConvSheetArgs {
  DType dtype;
  void* x;       // [batch, channels, length]
  float* sheet;
  int64_t batch, channels, length;
  bool to_sheet;
};

struct ConvWeightArgs {
  DType dtype;
  const void* weight;    // element (out channel, in channel, tap) at these strides
  int64_t out_stride, in_stride, tap_stride;
  const int64_t* taps;   // [num_taps], those to take
  void* packed;          // conv1d.cpp says how
  int64_t out_channels, in_channels, num_taps, planes;
  bool pairs;
};

// Output time stride * t + phase of a convolution (stride 1) or a transposed one: taps[j] meets input time t + offsets[j].
struct ConvPhase {
  const void* packed;
  const int64_t* offsets;
  int64_t num_taps;
};

struct Conv1dArgs {
  DType dtype;            // of the packed weights
  ConvRows rows;
  const ConvPhase* phases;  // [stride]
  const float* bias;      // [out_channels rounded up to 32]
  const float* residual;  // sheets [out_channels, stride * length], or null: out = scale * (total + (residual + conv))
  const float* total;
  float* out;             // a sheet; may be residual or total itself
  int64_t out_channels, stride;
  float scale;
  std::atomic<int64_t>* next;  // 0 at the start: threads take units of work as they come
};

// A convolution that keeps the length by Winograd's minimal filtering (conv1d_winograd.cpp): a tile is `outputs()` results,
// `dilation` times apart, and takes kPoints products where `outputs() * group_taps()` would be needed. More than five taps
// are groups of four, so that the inputs of one group of a tile are those of the group before it of the next tile.
struct Winograd {
  static constexpr int64_t kPoints = 7;
  int64_t taps, dilation;

  int64_t group_taps() const { return taps <= 5 ? taps : 4; }
  int64_t groups() const { return (taps + group_taps() - 1) / group_taps(); }
  int64_t outputs() const { return kPoints + 1 - group_taps(); }
  // Row t * dilation + p is the tile of times (t * outputs() + i) * dilation + p.
  int64_t tiles(int64_t length) const {
    return (length + outputs() * dilation - 1) / (outputs() * dilation) * dilation;
  }
  // With those that only later groups read.
  int64_t input_tiles(int64_t length) const { return tiles(length) + (groups() - 1) * dilation; }
};

struct WinogradWeightArgs {
  Winograd shape;
  const float* weight;  // [out_channels, in_channels, taps]
  float* packed;        // [out channels / 32][point][in channels / 16][group][16 in channels][32 out channels]
  int64_t out_channels, in_channels;
};

struct WinogradInputArgs {
  Winograd shape;
  ConvRows rows;   // float32
  ConvRows tiles;  // the same with kPoints planes and input_tiles() for the length, and no padding
  std::atomic<int64_t>* next;
};

struct WinogradConvArgs {
  Winograd shape;
  ConvRows tiles;
  const float* packed;
  const float* bias;      // [out_channels rounded up to 32]
  const float* residual;  // this and all below as Conv1dArgs
  const float* total;
  float* out;
  int64_t out_channels, length;
  float scale;
  std::atomic<int64_t>* next;
};

// A convolution of few channels that keeps the length, channel by channel as tensors lie (conv1d_thin.cpp), all float32.
struct ThinConvArgs {
  const float* x;         // [batch, in_channels, length]
  const float* packed;    // [out_channels / 4][in_channels][taps][4]
  const float* bias;      // [out_channels rounded up to 4]
  const float* residual;  // this, total and out [batch, out_channels, length], otherwise as Conv1dArgs
  const float* total;
  float* out;
  int64_t batch, in_channels, out_channels, length, taps, dilation;
  float scale;
  std::atomic<int64_t>* next;
};

struct ConvertArgs {
  bf16* values;   // [size]
  float* floats;  // [size]
  int64_t size;
  bool to_floats;
};

struct SnakeRowsArgs {
  const float* sheet;        // [rows.batch, rows.channels, rows.length]
  const float* alpha;        // [channels]
  const float* inv_beta;     // [channels]
  const float* up_filter;    // [12]
  const float* down_filter;  // [12]
  ConvRows rows;             // padding is left alone
  std::atomic<int64_t>* next;
};

}  // namespace antiphon
