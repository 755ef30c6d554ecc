// The one file that knows Python. Tensors arrive as addresses (tensor.data_ptr()) and sizes; the Python side in
// kernels/antiphon_kernels/native checks shapes, strides and dtypes before it calls. The GIL is released in every call.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "attention_plan.h"
#include "decode_step.h"
#include "encoder_pass.h"
#include "flow_pass.h"
#include "isa.h"
#include "kernels.h"
#include "token_step.h"
#include "vocoder.h"

namespace py = pybind11;
using namespace antiphon;

namespace {

using Address = uintptr_t;

template <class T = void>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

template <class Args>
void launch(void (*kernel)(const Args&, int, int), const Args& args) {
  py::gil_scoped_release release;
  parallel([&](int index, int count) { kernel(args, index, count); });
}

uint64_t read_probe(Address data, int64_t bytes) {
  uint64_t sums[256] = {};
  launch(kernels().read_probe, ReadProbeArgs{at<uint64_t>(data), bytes / 8, sums});
  uint64_t total = 0;
  for (uint64_t sum : sums) total += sum;
  return total;
}

void linear(int dtype, Address x, int64_t x_stride, Address weight, Address bias, Address out, int64_t num_rows,
            int64_t split, int64_t n, int64_t k) {
  launch(kernels().linear, LinearArgs{static_cast<DType>(dtype), at(x), x_stride, at(weight), at(bias), at(out),
                                      num_rows, split, n, k});
}

void linear_wide(Address x, int64_t x_stride, Address weight, Address bias, Address out, Address workspace,
                 int64_t num_rows, int64_t split, int64_t n, int64_t k) {
  std::atomic<int64_t> next{0};
  const LinearWideArgs args{at<bf16>(x), x_stride, at<bf16>(weight), at<bf16>(bias), at<bf16>(out),
                            at<bf16>(workspace), &next, num_rows, split, n, k};
  launch(kernels().linear_wide_pack, args);
  launch(kernels().linear_wide, args);
}

void linear_fixed_weight(Address weight, Address tiles, Address scales, int64_t n, int64_t k) {
  launch(kernels().linear_fixed_weight,
         LinearFixedWeightArgs{at<float>(weight), at<int8_t>(tiles), at<float>(scales), n, k});
}

void linear_fixed(Address x, int64_t x_stride, Address tiles, Address scales, Address bias, Address out, int64_t num_rows,
                  int64_t n, int64_t k) {
  std::atomic<int64_t> next{0};
  const int64_t units = linear_fixed_bytes(num_rows, k), blocks = (num_rows + 15) / 16;
  char* packed = static_cast<char*>(shared_scratch(units + blocks * 16 * sizeof(float)));
  const LinearFixedArgs args{at<float>(x), x_stride, at<int8_t>(tiles), at<float>(scales), at<float>(bias),
                             at<float>(out), reinterpret_cast<int8_t*>(packed), reinterpret_cast<float*>(packed + units),
                             &next, num_rows, n, k};
  launch(kernels().linear_fixed_pack, args);
  launch(kernels().linear_fixed, args);
}

void linear_int8(int dtype, Address x, int64_t x_stride, Address weight, Address scale, Address bias, Address out,
                 int64_t num_rows, int64_t split, int64_t n, int64_t k) {
  launch(kernels().linear_int8, LinearInt8Args{static_cast<DType>(dtype), at(x), x_stride, at<int8_t>(weight),
                                               at<float>(scale), at(bias), at(out), num_rows, split, n, k});
}

void linear_int4(int dtype, Address x, int64_t x_stride, Address weight, Address scale, Address bias, Address out,
                 int64_t num_rows, int64_t split, int64_t n, int64_t k) {
  launch(kernels().linear_int4, LinearInt4Args{static_cast<DType>(dtype), at(x), x_stride, at<uint8_t>(weight),
                                               at<bf16>(scale), at(bias), at(out), num_rows, split, n, k});
}

// Splits x into planes in `workspace`, linear_planes_bytes() of it, and says where they are.
SplitRows split_planes(DType dtype, const void* x, int64_t x_stride, Address workspace, int64_t num_rows, int64_t split,
                    int64_t k, std::atomic<int64_t>& next) {
  auto* planes = at<int8_t>(workspace);
  const int64_t blocks = plane_blocks(split) + plane_blocks(num_rows - split);
  auto* steps = reinterpret_cast<float*>(planes + blocks * 16 * 2 * k);
  launch(kernels().linear_planes, PlanesArgs{dtype, x, x_stride, planes, steps, num_rows, split, k});
  return {planes, steps, &next};
}

void linear_int8_wide(int dtype, Address x, int64_t x_stride, Address weight, Address scale, Address bias, Address out,
                      Address workspace, int64_t num_rows, int64_t split, int64_t n, int64_t k) {
  std::atomic<int64_t> next{0};
  const LinearInt8Args args{static_cast<DType>(dtype), at(x), x_stride, at<int8_t>(weight), at<float>(scale), at(bias),
                            at(out), num_rows, split, n, k};
  const SplitRows planes = split_planes(args.dtype, args.x, x_stride, workspace, num_rows, split, k, next);
  launch(kernels().linear_int8_wide, LinearInt8WideArgs{args, planes});
}

void linear_int4_wide(int dtype, Address x, int64_t x_stride, Address weight, Address scale, Address bias, Address out,
                      Address workspace, int64_t num_rows, int64_t split, int64_t n, int64_t k) {
  std::atomic<int64_t> next{0};
  const LinearInt4Args args{static_cast<DType>(dtype), at(x), x_stride, at<uint8_t>(weight), at<bf16>(scale), at(bias),
                            at(out), num_rows, split, n, k};
  const SplitRows planes = split_planes(args.dtype, args.x, x_stride, workspace, num_rows, split, k, next);
  launch(kernels().linear_int4_wide, LinearInt4WideArgs{args, planes});
}

void rms_norm(int dtype, Address x, Address residual, Address weight, Address out, Address sum_out, int64_t num_rows,
              int64_t split, int64_t hidden, float eps) {
  launch(kernels().rms_norm, RmsNormArgs{static_cast<DType>(dtype), at(x), at(residual), at(weight), at(out),
                                         at(sum_out), num_rows, split, hidden, eps});
}

void silu_mul(int dtype, Address x, Address out, int64_t num_rows, int64_t half) {
  launch(kernels().silu_mul, SiluMulArgs{static_cast<DType>(dtype), at(x), at(out), num_rows, half});
}

void rope_cache(int dtype, Address qkv, Address positions, Address cos, Address sin, Address slots, Address k_cache,
                Address v_cache, Address q, int64_t num_rows, int64_t num_heads, int64_t num_kv_heads,
                int64_t head_dim) {
  launch(kernels().rope_cache,
         RopeCacheArgs{static_cast<DType>(dtype), at(qkv), at<int64_t>(positions), at<float>(cos), at<float>(sin),
                       at<int64_t>(slots), at(k_cache), at(v_cache), at(q), num_rows, num_heads, num_kv_heads,
                       head_dim});
}

void paged_attention(int dtype, Address q, Address k_cache, Address v_cache, Address block_tables,
                     Address cu_seqlens_q, Address seq_lens, Address out, int64_t num_seqs, int64_t max_pages,
                     int64_t page_size, int64_t num_heads, int64_t num_kv_heads, int64_t head_dim, float scale) {
  const PagedAttentionArgs args{static_cast<DType>(dtype), at(q), at(k_cache), at(v_cache), at<int32_t>(block_tables),
                                at<int32_t>(cu_seqlens_q), at<int32_t>(seq_lens), at(out), num_seqs, max_pages,
                                page_size, num_heads, num_kv_heads, head_dim, scale};
  launch(kernels().paged_attention, args);
  AttentionUnits units(num_kv_heads, head_dim);
  for (int64_t s = 0; s < num_seqs; ++s) {
    const int64_t rows = args.cu_seqlens_q[s + 1] - args.cu_seqlens_q[s];
    units.add(rows > 1 ? rows * (num_heads / num_kv_heads) : 0, args.seq_lens[s]);
  }
  if (units.rows() > 0) launch(kernels().paged_prefill, PagedPrefillArgs{args, units.plan()});
}

void layer_norm_modulate(int dtype, Address x, Address shift, Address scale, Address out, int64_t shift_stride,
                         int64_t scale_stride, int64_t num_rows, int64_t hidden, int64_t frames_per_token, float eps) {
  launch(kernels().layer_norm_modulate,
         LayerNormModulateArgs{static_cast<DType>(dtype), at(x), at(shift), at(scale), at(out), shift_stride,
                               scale_stride, num_rows, hidden, frames_per_token, eps});
}

void gate_residual(int dtype, Address x, Address y, Address gate, Address out, int64_t gate_stride, int64_t num_rows,
                   int64_t hidden, int64_t frames_per_token) {
  launch(kernels().gate_residual, GateResidualArgs{static_cast<DType>(dtype), at(x), at(y), at(gate), at(out),
                                                   gate_stride, num_rows, hidden, frames_per_token});
}

void flow_rope(int dtype, Address qkv, Address positions, Address cos, Address sin, Address q, Address k, Address v,
               int64_t qkv_stride, int64_t num_rows, int64_t num_heads, int64_t head_dim) {
  launch(kernels().flow_rope,
         FlowRopeArgs{static_cast<DType>(dtype), at(qkv), at<int64_t>(positions), at<float>(cos), at<float>(sin), at(q),
                      at(k), at(v), qkv_stride, num_rows, num_heads, head_dim});
}

void flow_attention(int dtype, Address q, Address k, Address v, Address cu_seqlens, Address k_cache, Address v_cache,
                    Address slots, Address cache_lens, Address out, int64_t num_streams, int64_t window, int64_t heads,
                    int64_t head_dim, float scale) {
  const int32_t *starts = at<int32_t>(cu_seqlens), *cached = at<int32_t>(cache_lens);
  AttentionUnits units(heads, head_dim);
  for (int64_t s = 0; s < num_streams; ++s)
    units.add(starts[s + 1] - starts[s], starts[s + 1] - starts[s] + cached[s]);
  launch(kernels().flow_attention,
         FlowAttentionArgs{static_cast<DType>(dtype), at(q), at(k), at(v), starts, at(k_cache), at(v_cache),
                           at<int64_t>(slots), cached, at(out), window, scale, units.plan()});
}

// strides: segment, row, head of q, k and v.
void encoder_attention(int dtype, Address q, Address k, Address v, const std::vector<int64_t>& strides, Address lengths,
                       Address out, int64_t num_segments, int64_t rows, int64_t heads, int64_t head_dim, int64_t block,
                       float scale) {
  const auto heads_at = [&](Address address, size_t i) {
    return StridedHeads{at(address), strides.at(i), strides.at(i + 1), strides.at(i + 2)};
  };
  AttentionUnits units(heads, head_dim);
  for (int64_t s = 0; s < num_segments; ++s)
    units.add(rows, block > 0 ? std::min(at<int64_t>(lengths)[s], rows) : rows);
  launch(kernels().encoder_attention,
         EncoderAttentionArgs{static_cast<DType>(dtype), heads_at(q, 0), heads_at(k, 3), heads_at(v, 6),
                              at<int64_t>(lengths), at(out), rows, rows, block, scale, units.plan()});
}

void gelu(int dtype, Address x, Address out, int64_t size, bool tanh) {
  launch(kernels().gelu, GeluArgs{static_cast<DType>(dtype), at(x), at(out), size, tanh});
}

void alias_free_snake(int dtype, Address x, Address alpha, Address inv_beta, Address up_filter, Address down_filter,
                      Address out, int64_t num_rows, int64_t channels, int64_t length) {
  launch(kernels().alias_free_snake,
         AliasFreeSnakeArgs{static_cast<DType>(dtype), at(x), at<float>(alpha), at<float>(inv_beta),
                            at<float>(up_filter), at<float>(down_filter), at(out), num_rows, channels, length});
}

// sampling: temperature, penalty, top_k, window.
void sample_tokens(int dtype, Address logits, int64_t logits_stride, int64_t vocabulary, int64_t num_rows,
                   Address slots, Address history, int64_t history_stride, Address history_len,
                   const std::vector<Address>& sampling, int64_t sampling_stride, Address seeds, int64_t stream,
                   Address out) {
  launch(kernels().sample_tokens,
         SampleTokensArgs{static_cast<DType>(dtype), at(logits), logits_stride, vocabulary, num_rows,
                          at<int64_t>(slots), at<int32_t>(history), history_stride, at<int64_t>(history_len),
                          at<float>(sampling.at(0)), at<float>(sampling.at(1)), at<int64_t>(sampling.at(2)),
                          at<int64_t>(sampling.at(3)), sampling_stride, at<int64_t>(seeds), stream,
                          at<int64_t>(out)});
}

// state: text_history, audio_history, history_len, text_ended, stop, speaks, limit.
StreamState stream_state(const std::vector<Address>& state, int64_t capacity) {
  return {at<int32_t>(state.at(0)), at<int32_t>(state.at(1)), capacity, at<int64_t>(state.at(2)),
          at<int64_t>(state.at(4)), at<bool>(state.at(3)), at<bool>(state.at(5)), at<int64_t>(state.at(6))};
}

// ids: text_blank, text_eos, msg_end, media_end, delay. A few rows: no threads.
void advance_streams(const std::vector<Address>& state, int64_t capacity, const std::vector<int64_t>& ids,
                     Address text, Address audio, Address slots, Address text_out, Address audio_out,
                     int64_t num_rows) {
  kernels().advance_streams({stream_state(state, capacity),
                             {ids.at(0), ids.at(1), ids.at(2), ids.at(3), ids.at(4)},
                             at<int64_t>(text), at<int64_t>(audio), at<int64_t>(slots), at<int64_t>(text_out),
                             at<int64_t>(audio_out), num_rows},
                            0, 1);
}

// in: slots, base, runs, tables, spare, text_history, audio_history, history_len, stop; sizes: capacity, last,
// num_rows, max_pages, page_size, blank; out: slots, text, audio, positions, cache, seq_lens.
void decode_inputs(const std::vector<Address>& in, const std::vector<int64_t>& sizes,
                   const std::vector<Address>& out) {
  kernels().decode_inputs({at<int64_t>(in.at(0)), at<int64_t>(in.at(1)), at<bool>(in.at(2)), at<int32_t>(in.at(3)),
                           at<int64_t>(in.at(4)), at<int32_t>(in.at(5)), at<int32_t>(in.at(6)),
                           at<int64_t>(in.at(7)), at<int64_t>(in.at(8)), sizes.at(0), sizes.at(1), sizes.at(2),
                           sizes.at(3), sizes.at(4), sizes.at(5), at<int64_t>(out.at(0)), at<int64_t>(out.at(1)),
                           at<int64_t>(out.at(2)), at<int64_t>(out.at(3)), at<int64_t>(out.at(4)),
                           at<int32_t>(out.at(5))},
                          0, 1);
}

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
using Addresses = std::vector<Address>;

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
std::unique_ptr<DecodeStep> decode_step(int dtype, const std::vector<int64_t>& sizes, float eps,
                                        const Addresses& model, const std::vector<Addresses>& trunk,
                                        const std::vector<Addresses>& upper) {
  return std::make_unique<DecodeStep>(
      ModelWeights{static_cast<DType>(dtype), sizes.at(0), sizes.at(1), sizes.at(2), sizes.at(3), sizes.at(4),
                   sizes.at(5), sizes.at(6), sizes.at(7), sizes.at(8), eps, at(model.at(0)), at(model.at(1)),
                   matrix(model, 2), matrix(model, 5), at<float>(model.at(8)), at<float>(model.at(9)),
                   all_layers(trunk), all_layers(upper)});
}

// layout: num_rows, max_pages, addresses of positions, slots, block_tables, seq_lens.
DecodeLayout decode_layout(const std::vector<int64_t>& v) {
  return {v.at(0), v.at(1), at<int64_t>(v.at(2)), at<int64_t>(v.at(3)), at<int32_t>(v.at(4)), at<int32_t>(v.at(5))};
}

void run_decode_step(DecodeStep& step, Address audio_ids, Address text_ids, const std::vector<int64_t>& trunk,
                     const std::vector<int64_t>& upper, Address upper_rows, int64_t split, Address head_rows,
                     int64_t num_head_rows, int64_t head_split, Address text_logits, Address audio_logits) {
  const DecodeInput input{at<int64_t>(audio_ids), at<int64_t>(text_ids), decode_layout(trunk), decode_layout(upper),
                          at<int64_t>(upper_rows), split, at<int64_t>(head_rows), num_head_rows, head_split,
                          at(text_logits), at(audio_logits)};
  py::gil_scoped_release release;
  step.run(input);
}

// sampling: temperature, penalty, top_k, window, seeds; sizes: num_slots, capacity, head_delay; ids as above.
std::unique_ptr<TokenStep> token_step(DecodeStep& step, const std::vector<Address>& state,
                                      const std::vector<Address>& sampling, const std::vector<int64_t>& sizes,
                                      const std::vector<int64_t>& ids) {
  return std::make_unique<TokenStep>(
      step, RequestState{stream_state(state, sizes.at(1)), at<float>(sampling.at(0)), at<float>(sampling.at(1)),
                         at<int64_t>(sampling.at(2)), at<int64_t>(sampling.at(3)), at<int64_t>(sampling.at(4)),
                         sizes.at(0), sizes.at(2), {ids.at(0), ids.at(1), ids.at(2), ids.at(3), ids.at(4)}});
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
  return {work.trunk_rows, work.text_rows, work.audio_rows, work.text_heads, work.audio_heads};
}

std::vector<PassLinear> pass_linears(const std::vector<Addresses>& linears) {
  std::vector<PassLinear> all;
  for (const Addresses& a : linears)
    all.push_back({at(a.at(0)), at<float>(a.at(1)), at(a.at(2)), static_cast<int64_t>(a.at(3)),
                   static_cast<int64_t>(a.at(4))});
  return all;
}

// tables: cos, sin; linears: weight, scales, bias, n, k of the input's, of five a layer, of the final modulation's and
// of the output's.
std::unique_ptr<FlowPass> flow_pass(int dtype, int64_t num_heads, float eps, const Addresses& tables,
                                    const std::vector<Addresses>& linears, int64_t alone_work) {
  const std::vector<PassLinear> all = pass_linears(linears);
  std::vector<FlowLayer> layers;
  for (size_t i = 1; i + 5 < all.size(); i += 5)
    layers.push_back({all[i], all[i + 1], all[i + 2], all[i + 3], all[i + 4]});
  return std::make_unique<FlowPass>(FlowWeights{static_cast<DType>(dtype), num_heads, eps, at<float>(tables.at(0)),
                                                at<float>(tables.at(1)), all.at(0), std::move(layers),
                                                all.at(all.size() - 2), all.back()}, alone_work);
}

// sizes and tensors in the order of FlowInput's members.
void run_flow_pass(FlowPass& pass, const std::vector<int64_t>& sizes, const Addresses& a) {
  const FlowInput input{sizes.at(0), sizes.at(1), sizes.at(2), sizes.at(3), sizes.at(4), at(a.at(0)), at(a.at(1)),
                        at<int64_t>(a.at(2)), at<int32_t>(a.at(3)), at<int64_t>(a.at(4)), at<int32_t>(a.at(5)),
                        at(a.at(6)), at(a.at(7)), at(a.at(8)), at<int64_t>(a.at(9)), at<int64_t>(a.at(10)),
                        sizes.at(5)};
  py::gil_scoped_release release;
  pass.run(input);
}

// Vectors: a weight and a bias.
PassVectors vectors(const Addresses& a, size_t i) { return {at(a.at(i)), at(a.at(i + 1))}; }

// linears: weight, scales, bias, n, k of both convolutions and of qkv, out, fc1, fc2 of every layer; norms: weight and
// bias of two a layer and of the final one, which may be null.
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

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (Isa isa : available_isas()) names.emplace_back(isa_name(isa));
  return names;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Native CPU operators of Antiphon; raw pointers in, raw pointers out.";
  m.def("isa", [] { return std::string(isa_name(active_isa())); }, "Name of the instruction set in use.");
  m.def("available_isas", &isa_names, "Compiled in and supported here, slowest first.");
  m.def("set_isa", &set_isa, py::arg("name"));
  m.def("num_threads", &num_threads);
  m.def("set_num_threads", &set_num_threads, py::arg("count"));
  m.def("read_probe", &read_probe, "Sum of the 8-byte words of a buffer (data, bytes), read once by all threads.");
  m.def("linear", &linear);
  m.def("linear_fixed_weight", &linear_fixed_weight);
  m.def("linear_fixed", &linear_fixed);
  m.def("linear_fixed_weight_bytes", &linear_fixed_weight_bytes, "Bytes of the digits of a matrix.");
  m.def("linear_wide", &linear_wide);
  m.def("linear_wide_workspace", &linear_wide_workspace, "Elements of two bytes that linear_wide needs.");
  m.def("linear_int8", &linear_int8);
  m.def("linear_int4", &linear_int4);
  m.def("linear_planes_bytes", &linear_planes_bytes, "Bytes of the workspace of the wide quantised kernels.");
  m.def("linear_int8_wide", &linear_int8_wide);
  m.def("linear_int4_wide", &linear_int4_wide);
  m.def("rms_norm", &rms_norm);
  m.def("silu_mul", &silu_mul);
  m.def("rope_cache", &rope_cache);
  m.def("paged_attention", &paged_attention);
  m.def("layer_norm_modulate", &layer_norm_modulate);
  m.def("gate_residual", &gate_residual);
  m.def("flow_rope", &flow_rope);
  m.def("flow_attention", &flow_attention);
  m.def("encoder_attention", &encoder_attention);
  m.def("gelu", &gelu);
  m.def("alias_free_snake", &alias_free_snake);
  m.def("sample_tokens", &sample_tokens);
  m.def("advance_streams", &advance_streams);
  m.def("decode_inputs", &decode_inputs);
  m.def("packed_conv", &packed_conv);
  m.def("packed_conv_transpose", &packed_conv_transpose);
  py::class_<PackedConv>(m, "PackedConv")
      .def("run", &run_packed_conv)
      .def_property_readonly("bytes", &PackedConv::bytes);
  py::class_<AmpBlocks>(m, "AmpBlocks").def(py::init(&amp_blocks)).def("run", &run_amp_blocks);
  py::class_<DecodeStep>(m, "DecodeStep").def(py::init(&decode_step)).def("run", &run_decode_step);
  py::class_<EncoderPass>(m, "EncoderPass").def(py::init(&encoder_pass)).def("run", &run_encoder_pass);
  py::class_<FlowPass>(m, "FlowPass").def(py::init(&flow_pass)).def("run", &run_flow_pass);
  py::class_<TokenStep>(m, "TokenStep").def(py::init(&token_step), py::keep_alive<1, 2>()).def("run", &run_token_step);
}
