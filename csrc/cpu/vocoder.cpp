#include "vocoder.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "isa.h"

namespace antiphon {
namespace {

constexpr int64_t kFewChannels = 16;  // up to here float32: two bfloat16 parts are too inexact in the narrow stages
constexpr int64_t kMostTaps = 31;  // of Winograd's filtering
constexpr int64_t kSpare = 32;  // rows behind the last that a block of times may read

bool use_pairs(DType dtype, int64_t channels) {
  const Isa isa = active_isa();
  return isa == Isa::amx ? dtype == DType::bf16 || channels > kFewChannels : isa == Isa::avx512bf16 && dtype == DType::bf16;
}

bool use_winograd(DType dtype, int64_t channels, int64_t taps) {
  return prefers_winograd(dtype) && channels > kFewChannels && taps >= 3 && taps <= kMostTaps;
}

// Up to 16 channels; AMX has tiles for 16 of bfloat16.
bool use_thin(DType dtype, int64_t out_channels, int64_t in_channels) {
  const int64_t most = active_isa() == Isa::amx && dtype == DType::bf16 ? kFewChannels - 1 : kFewChannels;
  return active_isa() != Isa::scalar && in_channels <= most && out_channels <= most;
}

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

float value(DType dtype, const void* p, int64_t i) {
  if (dtype == DType::f32) return static_cast<const float*>(p)[i];
  const uint32_t bits = static_cast<uint32_t>(static_cast<const bf16*>(p)[i].bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

template <class Args>
void launch(void (*kernel)(const Args&, int, int), const Args& args) {
  parallel([&](int index, int count) { kernel(args, index, count); });
}

// Working memory of the calling thread, kept for its next call: three sheets and the rows of a convolution.
struct Workspace {
  Aligned<float> sheets[4];
  Aligned<char> rows, tiles;
};
thread_local Workspace workspace;

// x as float32: itself, or `held` with its values.
const float* as_floats(DType dtype, const void* x, int64_t size, Aligned<float>& held) {
  if (dtype == DType::f32 || !x) return static_cast<const float*>(x);
  launch(kernels().convert, ConvertArgs{static_cast<bf16*>(const_cast<void*>(x)), held.reserve(size), size, true});
  return held.data();
}

// What as float32 is to become `out`: itself, or `held`, which finish_floats() rounds.
float* start_floats(DType dtype, void* out, int64_t size, Aligned<float>& held) {
  return dtype == DType::f32 ? static_cast<float*>(out) : held.reserve(size);
}
void finish_floats(DType dtype, void* out, int64_t size, float* floats) {
  if (dtype != DType::f32) launch(kernels().convert, ConvertArgs{static_cast<bf16*>(out), floats, size, false});
}

int64_t sheet_size(int64_t batch, int64_t channels, int64_t length) { return batch * round_up(channels, 16) * length; }

}  // namespace

// Half the products; on tiles float32 is faster still.
bool prefers_winograd(DType dtype) {
  const Isa isa = active_isa();
  return dtype == DType::f32 && isa != Isa::scalar && isa != Isa::amx;
}

PackedConv::PackedConv(DType dtype, const void* bias, int64_t out_channels, int64_t in_channels, int64_t stride)
    : kernel_(kernels()), dtype_(dtype), pairs_(use_pairs(dtype, std::min(out_channels, in_channels))),
      out_channels_(out_channels), in_channels_(in_channels), stride_(stride),
      planes_(pairs_ && dtype == DType::f32 ? 2 : 1), bias_(round_up(out_channels, 32)) {
  for (int64_t i = 0; bias && i < out_channels; ++i) bias_[i] = value(dtype, bias, i);
}

void PackedConv::add_phase(ConvWeightArgs args, const std::vector<int64_t>& taps, std::vector<int64_t> offsets) {
  const int64_t in_block = pairs_ ? 32 : 16, element = pairs_ || dtype_ == DType::bf16 ? 2 : 4;
  const int64_t steps = round_up(in_channels_, in_block) / in_block * static_cast<int64_t>(taps.size());
  const int64_t bytes = round_up(out_channels_, 32) * steps * in_block * element * planes_;
  for (int64_t offset : offsets) padding_ = std::max(padding_, std::abs(offset));
  phases_.push_back({std::move(offsets), {}});
  args.taps = taps.data();
  args.num_taps = static_cast<int64_t>(taps.size());
  args.packed = phases_.back().packed.reserve(bytes);
  args.planes = planes_;
  args.pairs = pairs_;
  launch(kernel_.conv1d_weight, args);
  bytes_ += bytes;
}

void PackedConv::pack_thin(const void* weight, int64_t taps, int64_t dilation) {
  thin_taps_ = taps;
  thin_dilation_ = dilation;
  thin_weights_.resize(round_up(out_channels_, 4) * in_channels_ * taps);
  for (int64_t o = 0; o < out_channels_; ++o)
    for (int64_t i = 0; i < in_channels_ * taps; ++i)
      thin_weights_[(o / 4 * in_channels_ * taps + i) * 4 + o % 4] = value(dtype_, weight, o * in_channels_ * taps + i);
  bytes_ += static_cast<int64_t>(thin_weights_.size() * sizeof(float));
}

void PackedConv::pack_winograd(const float* weight) {
  const int64_t size = round_up(out_channels_, 32) * round_up(in_channels_, 16) * winograd_->groups() * Winograd::kPoints;
  launch(kernel_.winograd_weight,
         WinogradWeightArgs{*winograd_, weight, winograd_weights_.reserve_unset(size), out_channels_, in_channels_});
  bytes_ += size * static_cast<int64_t>(sizeof(float));
}

PackedConv PackedConv::plain(DType dtype, const void* weight, const void* bias, int64_t out_channels,
                             int64_t in_channels, int64_t taps, int64_t dilation) {
  PackedConv conv(dtype, bias, out_channels, in_channels, 1);
  if (use_thin(dtype, out_channels, in_channels)) {
    conv.pack_thin(weight, taps, dilation);
    return conv;
  }
  if (use_winograd(dtype, std::min(out_channels, in_channels), taps)) {
    conv.winograd_ = Winograd{taps, dilation};
    conv.pack_winograd(static_cast<const float*>(weight));
    return conv;
  }
  std::vector<int64_t> all, offsets;
  for (int64_t j = 0; j < taps; ++j) {
    all.push_back(j);
    offsets.push_back((j - (taps - 1) / 2) * dilation);
  }
  conv.add_phase({dtype, weight, in_channels * taps, taps, 1, nullptr, nullptr, out_channels, in_channels, 0, 0, false}, all,
                 offsets);
  return conv;
}

PackedConv PackedConv::transposed(DType dtype, const void* weight, const void* bias, int64_t in_channels,
                                  int64_t out_channels, int64_t taps, int64_t stride, int64_t padding) {
  if (taps - 2 * padding != stride) throw std::invalid_argument("transposed convolution: expected taps - 2 padding = stride");
  PackedConv conv(dtype, bias, out_channels, in_channels, stride);
  for (int64_t phase = 0; phase < stride; ++phase) {
    std::vector<int64_t> used, offsets;  // output time i stride + k - padding gets input i times tap k
    for (int64_t k = (phase + padding) % stride; k < taps; k += stride) {
      used.push_back(k);
      offsets.push_back((phase + padding - k) / stride);
    }
    conv.add_phase({dtype, weight, taps, out_channels * taps, 1, nullptr, nullptr, out_channels, in_channels, 0, 0, false},
                   used, offsets);
  }
  return conv;
}

ConvRows PackedConv::rows(int64_t batch, int64_t length, int64_t padding) const {
  return {nullptr, batch, in_channels_, length, planes_, padding, length + 2 * padding + kSpare, pairs_};
}

void PackedConv::run_thin(const float* x, const float* residual, const float* total, float scale, float* out,
                          int64_t batch, int64_t length) const {
  std::atomic<int64_t> next{0};
  launch(kernel_.thin_conv1d, ThinConvArgs{x, thin_weights_.data(), bias_.data(), residual, total, out, batch, in_channels_,
                                           out_channels_, length, thin_taps_, thin_dilation_, scale, &next});
}

void PackedConv::run_winograd(const ConvRows& rows, const float* residual, const float* total, float scale,
                              float* out) const {
  const int64_t length = winograd_->input_tiles(rows.length);
  ConvRows tiles{nullptr, rows.batch, rows.channels, length, Winograd::kPoints, 0, length + kSpare, false};
  tiles.data = workspace.tiles.reserve(tiles.bytes());
  std::atomic<int64_t> next{0};
  launch(kernel_.winograd_input, WinogradInputArgs{*winograd_, rows, tiles, &next});
  next = 0;
  launch(kernel_.winograd_conv1d, WinogradConvArgs{*winograd_, tiles, winograd_weights_.data(), bias_.data(), residual,
                                                   total, out, out_channels_, rows.length, scale, &next});
}

void PackedConv::run(const ConvRows& rows, const float* residual, const float* total, float scale, float* out) const {
  if (winograd_) return run_winograd(rows, residual, total, scale, out);
  std::vector<ConvPhase> phases;
  for (const Taps& t : phases_)
    phases.push_back({t.packed.data(), t.offsets.data(), static_cast<int64_t>(t.offsets.size())});
  std::atomic<int64_t> next{0};
  launch(kernel_.conv1d, Conv1dArgs{dtype_, rows, phases.data(), bias_.data(), residual, total, out, out_channels_,
                                    stride_, scale, &next});
}

void PackedConv::run(const void* x, const void* residual, void* out, int64_t batch, int64_t length) const {
  Workspace& w = workspace;
  if (thin()) {
    const int64_t size = batch * out_channels_ * length;
    const float* input = as_floats(dtype_, x, batch * in_channels_ * length, w.sheets[0]);
    const float* held = as_floats(dtype_, residual, size, w.sheets[1]);
    float* result = start_floats(dtype_, out, size, w.sheets[2]);
    run_thin(input, held, nullptr, 1.0f, result, batch, length);
    return finish_floats(dtype_, out, size, result);
  }
  ConvRows in = rows(batch, length, padding_);
  in.data = w.rows.reserve(in.bytes());
  launch(kernel_.conv1d_rows, ConvRowsArgs{dtype_, x, in});
  const int64_t out_length = length * stride_, size = sheet_size(batch, out_channels_, out_length);
  float *sheet = w.sheets[0].reserve(size), *held = nullptr;
  if (residual) {
    held = w.sheets[1].reserve(size);
    launch(kernel_.conv1d_sheet,
           ConvSheetArgs{dtype_, const_cast<void*>(residual), held, batch, out_channels_, out_length, true});
  }
  run(in, held, nullptr, 1.0f, sheet);
  launch(kernel_.conv1d_sheet, ConvSheetArgs{dtype_, out, sheet, batch, out_channels_, out_length, false});
}

AmpBlocks::AmpBlocks(DType dtype, int64_t channels, int64_t num_blocks, std::vector<const PackedConv*> convs,
                     std::vector<SnakeWeights> activations)
    : kernel_(kernels()), dtype_(dtype), channels_(channels), num_blocks_(num_blocks), convs_(std::move(convs)),
      activations_(std::move(activations)) {
  if (num_blocks < 1 || convs_.empty() || convs_.size() != activations_.size() || convs_.size() % (2 * num_blocks))
    throw std::invalid_argument("AmpBlocks: expected an even number of convolutions a block, and as many activations");
}

void AmpBlocks::activate(int64_t index, const float* sheet, const ConvRows& rows) const {
  const SnakeWeights& w = activations_[index];
  std::atomic<int64_t> next{0};
  launch(kernel_.alias_free_snake_rows,
         SnakeRowsArgs{sheet, w.alpha, w.inv_beta, w.up_filter, w.down_filter, rows, &next});
}

template <class Layer>
void AmpBlocks::each_layer(const float* input, float* state, float* total, const Layer& layer) const {
  const int64_t per_block = static_cast<int64_t>(convs_.size()) / num_blocks_;
  for (int64_t block = 0; block < num_blocks_; ++block)
    for (int64_t i = 0; i < per_block; i += 2) {
      const bool ends = i + 2 == per_block;
      const float scale = ends && block + 1 == num_blocks_ ? 1.0f / static_cast<float>(num_blocks_) : 1.0f;
      layer(block * per_block + i, i == 0 ? input : state, ends && block > 0 ? total : nullptr, scale, ends ? total : state);
    }
}

void AmpBlocks::run_thin(const void* x, void* out, int64_t batch, int64_t length) const {
  Workspace& w = workspace;
  const int64_t size = batch * channels_ * length;
  const float* input = as_floats(dtype_, x, size, w.sheets[0]);
  float *active = w.sheets[1].reserve(2 * size), *middle = active + size, *state = w.sheets[2].reserve(size);
  float* total = start_floats(dtype_, out, size, w.sheets[3]);
  const auto activate = [&](int64_t index, const float* from) {
    const SnakeWeights& s = activations_[index];
    launch(kernel_.alias_free_snake, AliasFreeSnakeArgs{DType::f32, from, s.alpha, s.inv_beta, s.up_filter, s.down_filter,
                                                        active, batch * channels_, channels_, length});
  };
  each_layer(input, state, total, [&](int64_t index, const float* from, const float* sum, float scale, float* to) {
    activate(index, from);
    convs_[index]->run_thin(active, nullptr, nullptr, 1.0f, middle, batch, length);
    activate(index + 1, middle);
    convs_[index + 1]->run_thin(active, from, sum, scale, to, batch, length);
  });
  finish_floats(dtype_, out, size, total);
}

void AmpBlocks::run(const void* x, void* out, int64_t batch, int64_t length) const {
  if (convs_[0]->thin()) return run_thin(x, out, batch, length);
  Workspace& w = workspace;
  const int64_t size = sheet_size(batch, channels_, length);
  float *input = w.sheets[0].reserve(size), *middle = w.sheets[1].reserve(size), *state = w.sheets[2].reserve(size);
  float* total = w.sheets[3].reserve(size);
  int64_t padding = 0;
  for (const PackedConv* conv : convs_) padding = std::max(padding, conv->padding());
  ConvRows rows = convs_[0]->rows(batch, length, padding);
  rows.data = w.rows.reserve(rows.bytes());
  for (int64_t n = 0; n < batch; ++n)
    for (int64_t block = 0; block < rows.blocks(); ++block) rows.clear_padding(n, block);
  launch(kernel_.conv1d_sheet, ConvSheetArgs{dtype_, const_cast<void*>(x), input, batch, channels_, length, true});
  each_layer(input, state, total, [&](int64_t index, const float* from, const float* sum, float scale, float* to) {
    activate(index, from, rows);
    convs_[index]->run(rows, nullptr, nullptr, 1.0f, middle);
    activate(index + 1, middle, rows);
    convs_[index + 1]->run(rows, from, sum, scale, to);
  });
  launch(kernel_.conv1d_sheet, ConvSheetArgs{dtype_, out, total, batch, channels_, length, false});
}

}  // namespace antiphon
