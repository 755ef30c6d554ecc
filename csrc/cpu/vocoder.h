// BigVGAN's convolutions with packed weights, and a stage's residual blocks as one call. Made once a model; the layouts
// are those of the instruction set that was active then.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "aligned.h"
#include "kernels.h"

namespace antiphon {

// Whether convolutions that keep the length run by Winograd's filtering, which packs up to 7/3 of their weights.
bool prefers_winograd(DType dtype);

// A convolution that keeps the length (stride 1) or a transposed one to `stride` times the length.
class PackedConv {
 public:
  // weight [out_channels, in_channels, taps], taps odd; bias [out_channels] or null.
  static PackedConv plain(DType dtype, const void* weight, const void* bias, int64_t out_channels, int64_t in_channels,
                          int64_t taps, int64_t dilation);
  // weight [in_channels, out_channels, taps]; padding as PyTorch's, 2 * padding + stride = taps - (taps - stride) % 2.
  static PackedConv transposed(DType dtype, const void* weight, const void* bias, int64_t in_channels,
                               int64_t out_channels, int64_t taps, int64_t stride, int64_t padding);

  // What it reads: `padding` zero rows on either side, or more.
  ConvRows rows(int64_t batch, int64_t length, int64_t padding) const;
  // out = scale * (total + (residual + conv)), sheets; residual and total may be null. Uses the calling thread's memory.
  void run(const ConvRows& rows, const float* residual, const float* total, float scale, float* out) const;
  // x [batch, in_channels, length] to out [batch, out_channels, stride * length], of the weights' dtype; residual as out,
  // or null.
  void run(const void* x, const void* residual, void* out, int64_t batch, int64_t length) const;

  // Few channels, which pass as tensors lie: all [batch, channels, length], float32.
  bool thin() const { return !thin_weights_.empty(); }
  void run_thin(const float* x, const float* residual, const float* total, float scale, float* out, int64_t batch,
                int64_t length) const;

  int64_t padding() const { return padding_; }
  int64_t bytes() const { return bytes_; }

 private:
  struct Taps {
    std::vector<int64_t> offsets;  // in input times
    Aligned<char> packed;
  };

  PackedConv(DType dtype, const void* bias, int64_t out_channels, int64_t in_channels, int64_t stride);
  void pack_thin(const void* weight, int64_t taps, int64_t dilation);
  void pack_winograd(const float* weight);
  void run_winograd(const ConvRows& rows, const float* residual, const float* total, float scale, float* out) const;
  void add_phase(ConvWeightArgs args, const std::vector<int64_t>& taps, std::vector<int64_t> offsets);

  const Kernels& kernel_;
  DType dtype_;
  bool pairs_;
  int64_t out_channels_, in_channels_, stride_, planes_, padding_ = 0, bytes_ = 0;
  std::vector<float> bias_;
  std::vector<Taps> phases_;  // empty with one of those below
  std::optional<Winograd> winograd_;
  Aligned<float> winograd_weights_;
  std::vector<float> thin_weights_;
  int64_t thin_taps_ = 0, thin_dilation_ = 0;
};

// Parameters of an anti-aliased activation: alpha, inv_beta [channels], filters [12].
struct SnakeWeights {
  const float *alpha, *inv_beta, *up_filter, *down_filter;
};

// The mean of residual blocks of (activation, convolution, activation, convolution, + input) layers.
class AmpBlocks {
 public:
  // convs: per block and layer the dilated and the plain one; activations likewise. They stay the caller's.
  AmpBlocks(DType dtype, int64_t channels, int64_t num_blocks, std::vector<const PackedConv*> convs,
            std::vector<SnakeWeights> activations);
  // x and out [batch, channels, length].
  void run(const void* x, void* out, int64_t batch, int64_t length) const;

 private:
  void run_thin(const void* x, void* out, int64_t batch, int64_t length) const;
  void activate(int64_t index, const float* sheet, const ConvRows& rows) const;
  // layer(index, x, total, scale, out) for all of them, the last to `total`: out = scale * (total + x + layer of x).
  template <class Layer>
  void each_layer(const float* input, float* state, float* total, const Layer& layer) const;

  const Kernels& kernel_;
  DType dtype_;
  int64_t channels_, num_blocks_;
  std::vector<const PackedConv*> convs_;
  std::vector<SnakeWeights> activations_;
};

}  // namespace antiphon
