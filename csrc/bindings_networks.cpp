// The objects that are bound to weights once.
#include "bindings.h"

#include <memory>
#include <utility>

#include "draft_length.h"
#include "encoder_pass.h"
#include "flow_pass.h"
#include "model_step.h"
#include "token_step.h"
#include "vocoder.h"

namespace {

std::unique_ptr<PackedConv> packed_conv(int dtype, Address weight, Address bias, int64_t out_channels,
                                        int64_t in_channels, int64_t taps, int64_t dilation) {
  py::gil_scoped_release release;
  return std::make_unique<PackedConv>(PackedConv::plain(static_cast<DType>(dtype), at(weight), at(bias), out_channels,
                                                        in_channels, taps, dilation));
}

std::unique_ptr<PackedConv> packed_conv_transpose(int dtype, Address weight, Address bias, int64_t in_channels,
                                                  int64_t out_channels, int64_t taps, int64_t stride,
                                                  int64_t padding) {
  py::gil_scoped_release release;
  return std::make_unique<PackedConv>(PackedConv::transposed(static_cast<DType>(dtype), at(weight), at(bias),
                                                             in_channels, out_channels, taps, stride, padding));
}

void run_packed_conv(const PackedConv& conv, Address x, Address residual, Address out, int64_t batch, int64_t length) {
  py::gil_scoped_release release;
  conv.run(at(x), at(residual), at(out), batch, length);
}

// activations: alpha, inv_beta, up filter and down filter of each.
std::unique_ptr<AmpBlocks> amp_blocks(int dtype, int64_t channels, int64_t num_blocks,
                                      std::vector<const PackedConv*> convs,
                                      const std::vector<std::vector<Address>>& activations) {
  std::vector<SnakeWeights> snakes;
  for (const auto& a : activations)
    snakes.push_back({at<float>(a.at(0)), at<float>(a.at(1)), at<float>(a.at(2)), at<float>(a.at(3))});
  return std::make_unique<AmpBlocks>(static_cast<DType>(dtype), channels, num_blocks, std::move(convs),
                                     std::move(snakes));
}

void run_amp_blocks(const AmpBlocks& blocks, Address x, Address out, int64_t batch, int64_t length) {
  py::gil_scoped_release release;
  blocks.run(at(x), at(out), batch, length);
}

// Addresses of a layer's or a model's tensors, in the order of the struct's members; a matrix is three: format, weight,
// scale.
Matrix matrix(const Addresses& a, size_t i) {
  return {static_cast<Format>(a.at(i)), at(a.at(i + 1)), at(a.at(i + 2))};
}

std::vector<LayerWeights> all_layers(const std::vector<Addresses>& layers) {
  std::vector<LayerWeights> out;
  for (const Addresses& a : layers)
    out.push_back({at(a.at(0)), at(a.at(1)), at(a.at(2)), at(a.at(3)), at(a.at(4)), matrix(a, 5), matrix(a, 8),
                   matrix(a, 11), matrix(a, 14)});
  return out;
}

// sizes: hidden, intermediate, num_heads, num_kv_heads, head_dim, page_size, vocabulary, num_text_layers,
// num_audio_layers; model: embed, final_norm, lm_head (3), audio_head (3), cos, sin.
std::unique_ptr<ModelStep> model_step(int dtype, const std::vector<int64_t>& sizes, float eps, const Addresses& model,
                                      const std::vector<Addresses>& trunk, const std::vector<Addresses>& upper) {
  return std::make_unique<ModelStep>(
      ModelWeights{static_cast<DType>(dtype), sizes.at(0), sizes.at(1), sizes.at(2), sizes.at(3), sizes.at(4),
                   sizes.at(5), sizes.at(6), sizes.at(7), sizes.at(8), eps, at(model.at(0)), at(model.at(1)),
                   matrix(model, 2), matrix(model, 5), at<float>(model.at(8)), at<float>(model.at(9)),
                   all_layers(trunk), all_layers(upper)});
}

// layout: num_rows, max_pages, num_sequences, addresses of positions, slots, block_tables, seq_lens, first rows.
AttentionRows attention_rows(const std::vector<int64_t>& v) {
  return {v.at(0), v.at(1), at<int64_t>(v.at(3)), at<int64_t>(v.at(4)), at<int32_t>(v.at(5)), at<int32_t>(v.at(6)),
          v.at(2), at<int32_t>(v.at(7))};
}

void run_model_step(ModelStep& step, Address audio_ids, Address text_ids, const std::vector<int64_t>& trunk,
                    const std::vector<int64_t>& upper, Address upper_rows, int64_t split, Address head_rows,
                    int64_t num_head_rows, int64_t head_split, Address text_logits, Address audio_logits,
                    Address features, Address feature_rows) {
  const StepInput input{at<int64_t>(audio_ids), at<int64_t>(text_ids), attention_rows(trunk), attention_rows(upper),
                        at<int64_t>(upper_rows), split, at<int64_t>(head_rows), num_head_rows, head_split,
                        at(text_logits), at(audio_logits), nullptr, nullptr, at(features), at<int64_t>(feature_rows)};
  py::gil_scoped_release release;
  step.run(input);
}

// sampling: temperature, penalty, top_k, window, seeds; sizes: num_slots, capacity, head_delay; ids as above;
// draft may be None.
std::unique_ptr<TokenStep> token_step(ModelStep& step, const std::vector<Address>& state,
                                      const std::vector<Address>& sampling, const std::vector<int64_t>& sizes,
                                      const std::vector<int64_t>& ids, ModelStep* draft) {
  return std::make_unique<TokenStep>(
      step, RequestState{stream_state(state, sizes.at(1)), at<float>(sampling.at(0)), at<float>(sampling.at(1)),
                         at<int64_t>(sampling.at(2)), at<int64_t>(sampling.at(3)), at<int64_t>(sampling.at(4)),
                         sizes.at(0), sizes.at(2), {ids.at(0), ids.at(1), ids.at(2), ids.at(3), ids.at(4)}},
      draft);
}

// rows: addresses of slots, base, run_text, run_audio; drawn [steps, 4, num_rows]. Returns what was computed.
std::vector<int64_t> run_token_step(TokenStep& step, int64_t num_rows, const std::vector<Address>& rows,
                                    const std::vector<Address>& tables, int64_t max_pages, int64_t steps,
                                    Address drawn) {
  const TokenBatch batch{num_rows, at<int64_t>(rows.at(0)), at<int64_t>(rows.at(1)), at<bool>(rows.at(2)),
                         at<bool>(rows.at(3)),
                         {at<int32_t>(tables.at(0)), at<int32_t>(tables.at(1)), at<int32_t>(tables.at(2))},
                         max_pages};
  StepWork work;
  {
    py::gil_scoped_release release;
    work = step.run(batch, steps, at<int64_t>(drawn));
  }
  return {work.trunk_rows, work.text_rows, work.audio_rows, work.text_heads, work.audio_heads, work.drafted,
          work.accepted};
}

std::vector<PassLinear> pass_linears(const std::vector<Addresses>& linears) {
  std::vector<PassLinear> all;
  for (const Addresses& a : linears)
    all.push_back({at(a.at(0)), static_cast<int64_t>(a.at(1)), at<float>(a.at(2)), at<int32_t>(a.at(3)), at(a.at(4)),
                   static_cast<int64_t>(a.at(5)), static_cast<int64_t>(a.at(6))});
  return all;
}

// tables: cos, sin; linears: weight, w_stride, scales, codes, bias, n, k of the input's, of five a layer, of the final
// modulation's and of the output's.
std::unique_ptr<FlowPass> flow_pass(int dtype, int64_t num_heads, float eps, const Addresses& tables,
                                    const std::vector<Addresses>& linears, int64_t alone_work,
                                    int64_t packed_limit) {
  const std::vector<PassLinear> all = pass_linears(linears);
  std::vector<FlowLayer> layers;
  for (size_t i = 1; i + 5 < all.size(); i += 5)
    layers.push_back({all[i], all[i + 1], all[i + 2], all[i + 3], all[i + 4]});
  return std::make_unique<FlowPass>(FlowWeights{static_cast<DType>(dtype), num_heads, eps, at<float>(tables.at(0)),
                                                at<float>(tables.at(1)), all.at(0), std::move(layers),
                                                all.at(all.size() - 2), all.back()}, alone_work, packed_limit);
}

// sizes and tensors in the order of FlowInput's members.
void run_flow_pass(FlowPass& pass, const std::vector<int64_t>& sizes, const Addresses& a,
                   const std::vector<float>& widths) {
  const FlowInput input{sizes.at(0), sizes.at(1), sizes.at(2), sizes.at(3), sizes.at(4), at(a.at(0)), at(a.at(1)),
                        at<int64_t>(a.at(2)), at<int32_t>(a.at(3)), at<int64_t>(a.at(4)), at<int32_t>(a.at(5)),
                        at(a.at(6)), at(a.at(7)), at(a.at(8)), widths.data(), static_cast<int64_t>(widths.size()),
                        at<int64_t>(a.at(9)), at<int64_t>(a.at(10)), sizes.at(5)};
  py::gil_scoped_release release;
  pass.run(input);
}

// Vectors: a weight and a bias.
PassVectors vectors(const Addresses& a, size_t i) { return {at(a.at(i)), at(a.at(i + 1))}; }

// linears: weight, w_stride, scales, codes, bias, n, k of both convolutions and of qkv, out, fc1, fc2 of every layer; norms:
// weight and bias of two a layer and of the final one, which may be null.
std::unique_ptr<EncoderPass> encoder_pass(int dtype, int64_t num_heads, float eps, int64_t leading, Address positions,
                                          const std::vector<Addresses>& linears, const Addresses& norms) {
  const std::vector<PassLinear> all = pass_linears(linears);
  std::vector<EncoderLayer> layers;
  for (size_t i = 2, norm = 0; i + 4 <= all.size(); i += 4, norm += 4)
    layers.push_back({vectors(norms, norm), vectors(norms, norm + 2), all[i], all[i + 1], all[i + 2], all[i + 3]});
  return std::make_unique<EncoderPass>(EncoderWeights{static_cast<DType>(dtype), num_heads, eps, leading, all.at(0),
                                                      all.at(1), at(positions), std::move(layers),
                                                      vectors(norms, norms.size() - 2)});
}

// sizes: segments, frames, wanted, block.
void run_encoder_pass(EncoderPass& pass, const std::vector<int64_t>& sizes, Address mels, Address lengths,
                      Address out) {
  const EncoderInput input{sizes.at(0), sizes.at(1), sizes.at(2), sizes.at(3), at(mels), at<int64_t>(lengths), at(out)};
  py::gil_scoped_release release;
  pass.run(input);
}

}  // namespace

void bind_networks(py::module_& m) {
  m.def("prefers_winograd", [](int dtype) { return prefers_winograd(static_cast<DType>(dtype)); });
  m.def("packed_conv", &packed_conv);
  m.def("packed_conv_transpose", &packed_conv_transpose);
  py::class_<PackedConv>(m, "PackedConv")
      .def("run", &run_packed_conv)
      .def_property_readonly("bytes", &PackedConv::bytes);
  py::class_<AmpBlocks>(m, "AmpBlocks").def(py::init(&amp_blocks)).def("run", &run_amp_blocks);
  py::class_<ModelStep>(m, "ModelStep").def(py::init(&model_step)).def("run", &run_model_step);
  py::class_<EncoderPass>(m, "EncoderPass").def(py::init(&encoder_pass)).def("run", &run_encoder_pass);
  py::class_<FlowPass>(m, "FlowPass")
      .def(py::init(&flow_pass))
      .def("run", &run_flow_pass)
      .def_property_readonly("packed_bytes", &FlowPass::packed_bytes);
  m.def("next_draft_length", &next_draft_length);
  py::class_<TokenStep>(m, "TokenStep")
      .def(py::init(&token_step), py::keep_alive<1, 2>(), py::keep_alive<1, 7>())
      .def("run", &run_token_step);
}
