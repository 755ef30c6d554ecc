// The module and its operators.
#include "bindings.h"

#include <algorithm>

#include "attention_plan.h"
#include "compact.h"
#include "isa.h"

namespace {

template <class Args>
void launch(void (*kernel)(const Args&, int, int), const Args& args) {
  py::gil_scoped_release release;
  parallel([&](int index, int count) { kernel(args, index, count); });
}

uint64_t read_probe(Address data, int64_t bytes) {
  uint64_t sums[kMaxThreads] = {};
  launch(kernels().read_probe, ReadProbeArgs{at<uint64_t>(data), bytes / 8, sums});
  uint64_t total = 0;
  for (uint64_t sum : sums) total += sum;
  return total;
}

void linear(int dtype, Address x, int64_t x_stride, Address weight, int64_t w_stride, Address bias, Address out,
            int64_t num_rows, int64_t split, int64_t n, int64_t k) {
  launch(kernels().linear, LinearArgs{static_cast<DType>(dtype), at(x), x_stride, at(weight), w_stride, at(bias),
                                      at(out), num_rows, split, n, k});
}

void linear_wide(int dtype, Address x, int64_t x_stride, Address weight, int64_t w_stride, Address bias, Address out,
                 Address workspace, int64_t num_rows, int64_t split, int64_t n, int64_t k) {
  std::atomic<int64_t> next{0};
  const LinearWideArgs args{static_cast<DType>(dtype), at(x), x_stride, at(weight), w_stride, at(bias),
                            at(out), at(workspace), &next, num_rows, split, n, k};
  launch(kernels().linear_wide_pack, args);
  launch(kernels().linear_wide, args);
}

void linear_panels(int dtype, Address x, int64_t x_stride, Address panels, Address bias, Address out, Address workspace,
                   int64_t num_rows, int64_t n, int64_t k) {
  linear_wide(dtype, x, x_stride, panels, kInPanels, bias, out, workspace, num_rows, num_rows, n, k);
}

void weight_to_panels(int dtype, Address weight, int64_t w_stride, Address panels, int64_t n, int64_t k) {
  launch(kernels().weight_to_panels, WeightPanelsArgs{static_cast<DType>(dtype), at(weight), w_stride, at(panels), n, k});
}

void weight_from_panels(int dtype, Address weight, int64_t w_stride, Address panels, int64_t n, int64_t k) {
  launch(kernels().weight_from_panels, WeightPanelsArgs{static_cast<DType>(dtype), at(weight), w_stride, at(panels), n, k});
}

int64_t count_escapes(Address weight, int64_t rows, int64_t k, Address codes) {
  py::gil_scoped_release release;
  return compact_count(at<bf16>(weight), rows, k, at<int32_t>(codes));
}

void pack_compact(Address weight, int64_t rows, int64_t k, Address codes, Address out) {
  py::gil_scoped_release release;
  compact_pack(at<bf16>(weight), rows, k, at<int32_t>(codes), at<uint8_t>(out));
}

void widen_compact(Address weight, Address codes, Address out, int64_t rows, int64_t k) {
  launch(kernels().compact_widen, CompactWidenArgs{at<uint8_t>(weight), at<int32_t>(codes), at<bf16>(out), rows, k});
}

void linear_compact(int dtype, Address x, int64_t x_stride, Address weight, Address codes, Address bias, Address out,
                    int64_t num_rows, int64_t split, int64_t n, int64_t k) {
  launch(kernels().linear_compact, LinearCompactArgs{static_cast<DType>(dtype), at(x), x_stride, at<uint8_t>(weight),
                                                     at<int32_t>(codes), at(bias), at(out), num_rows, split, n, k});
}

void linear_compact_wide(int dtype, Address x, int64_t x_stride, Address weight, Address codes, Address bias,
                         Address out, Address workspace, int64_t num_rows, int64_t split, int64_t n, int64_t k) {
  std::atomic<int64_t> next{0};
  const LinearWideArgs args{static_cast<DType>(dtype), at(x), x_stride, nullptr, 0, at(bias), at(out), at(workspace),
                            &next, num_rows, split, n, k};
  launch(kernels().linear_wide_pack, args);
  launch(kernels().linear_compact_wide, LinearCompactWideArgs{args, at<uint8_t>(weight), at<int32_t>(codes)});
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
  const PlanesArgs args = planes_in(at<int8_t>(workspace), dtype, x, x_stride, num_rows, split, k);
  launch(kernels().linear_planes, args);
  return {args.planes, args.steps, &next};
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
  units.add_prompts(args.cu_seqlens_q, args.seq_lens, num_seqs, num_heads / num_kv_heads);
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
  m.def("linear_wide_workspace", &linear_wide_workspace, "Elements that linear_wide needs.");
  m.def("linear_panels", &linear_panels);
  m.def("weight_to_panels", &weight_to_panels);
  m.def("weight_from_panels", &weight_from_panels);
  m.def("panel_outputs", [] { return kernels().panel_outputs; }, "Outputs of a panel of weights.");
  m.def("packed_columns", [](int dtype, int64_t k) { return wide_columns(static_cast<DType>(dtype), k); },
        "Columns of a row of k, or of an output of a panel, as linear_wide reads it.");
  m.def("compact_count", &count_escapes, "Table and row starts of compact weights; returns the number of escapes.");
  m.def("compact_pack", &pack_compact);
  m.def("compact_widen", &widen_compact);
  m.def("linear_compact", &linear_compact);
  m.def("linear_compact_wide", &linear_compact_wide, "Any number of rows.");
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
  bind_networks(m);
}
