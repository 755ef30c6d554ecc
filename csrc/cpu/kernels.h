// Every kernel's arguments, and the kernels themselves once per instruction set: antiphon::<isa>::<name>.
//
// A kernel is called by each of `count` threads with its `index` and does its own share; shares never overlap, so a
// kernel needs no synchronisation. Pointers are to contiguous row-major memory of `dtype` unless a stride is given
// (strides are in elements); outputs never overlap inputs unless stated.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>

#include "bf16.h"
#include "conv_kernels.h"
#include "linear_kernels.h"
#include "thread_pool.h"

namespace antiphon {

struct ReadProbeArgs {
  const uint64_t* data;
  int64_t size;        // in 8-byte words
  uint64_t* sums;      // one per thread
};

struct RmsNormArgs {
  DType dtype;
  const void* x;         // [num_rows, hidden]
  const void* residual;  // the same, or null for the plain norm
  const void* weight;    // [branches, hidden]; rows [0, split) use the first
  void* out;             // [num_rows, hidden]
  void* sum_out;         // x + residual; may be x or residual itself
  int64_t num_rows, split, hidden;
  float eps;
};

struct SiluMulArgs {
  DType dtype;
  const void* x;  // [num_rows, 2 half], gate | up
  void* out;      // [num_rows, half]
  int64_t num_rows, half;
};

struct RopeCacheArgs {
  DType dtype;
  const void* qkv;           // [num_rows, (num_heads + 2 num_kv_heads) head_dim]
  const int64_t* positions;  // [num_rows]
  const float* cos;          // [max_positions, head_dim / 2]
  const float* sin;
  const int64_t* slots;      // [num_rows], into the flattened pages
  void* k_cache;             // [pages * page_size, num_kv_heads, head_dim]
  void* v_cache;
  void* q;                   // [num_rows, num_heads, head_dim]
  int64_t num_rows, num_heads, num_kv_heads, head_dim;
};

struct PagedAttentionArgs {
  DType dtype;
  const void* q;                // [rows, num_heads, head_dim]
  const void* k_cache;          // [pages, page_size, num_kv_heads, head_dim]
  const void* v_cache;
  const int32_t* block_tables;  // [num_seqs, max_pages]
  const int32_t* cu_seqlens_q;  // [num_seqs + 1]
  const int32_t* seq_lens;      // [num_seqs], this step's row included
  void* out;                    // [rows, num_heads, head_dim]; only rows of one-row sequences are written
  int64_t num_seqs, max_pages, page_size, num_heads, num_kv_heads, head_dim;
  float scale;
};

struct LayerNormModulateArgs {
  DType dtype;
  const void* x;      // [num_rows, hidden]
  const void* shift;  // [num_rows / frames_per_token, hidden], rows shift_stride apart
  const void* scale;
  void* out;          // [num_rows, hidden]
  int64_t shift_stride, scale_stride, num_rows, hidden, frames_per_token;
  float eps;
};

struct LayerNormArgs {
  DType dtype;
  const void* x;       // [num_rows, hidden]
  const void* weight;  // [hidden]
  const void* bias;    // [hidden]
  void* out;           // [num_rows, hidden]; may be x
  int64_t num_rows, hidden;
  float eps;
};

struct GateResidualArgs {
  DType dtype;
  const void* x;     // [num_rows, hidden]
  const void* y;
  const void* gate;  // [num_rows / frames_per_token, hidden], rows gate_stride apart
  void* out;         // may be x
  int64_t gate_stride, num_rows, hidden, frames_per_token;
};

struct EulerStepArgs {
  DType dtype;
  void* x;        // [size], becomes x + dt v
  const void* v;
  int64_t size;
  float dt;
};

struct FlowRopeArgs {
  DType dtype;
  const void* qkv;           // [num_rows, 3 num_heads head_dim], rows qkv_stride apart
  const int64_t* positions;  // [num_rows]
  const float* cos;          // [max_positions, head_dim / 2]
  const float* sin;
  void* q;                   // [num_rows, num_heads, head_dim]
  void* k;
  void* v;
  int64_t qkv_stride, num_rows, num_heads, head_dim;
};

// How the rows and keys of ragged sequences are cut into units of work; attention_plan.h makes it.
struct AttentionPlan {
  static constexpr int64_t kChunkRows = 192, kBlockKeys = 256, kKeyStep = 32;
  // Bytes of a packed element at most: float32 in three pieces of bfloat16, bfloat16 in float32.
  static constexpr int64_t stored_bytes(DType dtype) { return dtype == DType::f32 ? 6 : 4; }
  int64_t num_sequences, heads, head_dim;  // heads of the keys
  const int64_t* first_block;  // [num_sequences + 1], running total of blocks of keys of a head
  const int64_t* first_step;   // [num_sequences + 1], of steps of keys to pack: the last ones of a sequence's blocks
  const int64_t* first_chunk;  // [num_sequences + 1], of chunks of rows of a head
  void* workspace;             // for the packed blocks, 64-byte aligned; holds the steps that are packed already
  std::atomic<int64_t>* next;  // two, 0 at the start: threads take units of work as they come
};

struct FlowAttentionArgs {
  DType dtype;
  const void* q;              // [rows, heads, head_dim]
  const void* k;
  const void* v;
  const int32_t* cu_seqlens;  // [num_streams + 1]
  const void* k_cache;        // [slots, window, heads, head_dim]
  const void* v_cache;
  const int64_t* slots;       // [num_streams]
  const int32_t* cache_lens;  // [num_streams]
  void* out;                  // [rows, heads, head_dim]
  int64_t window;
  float scale;
  AttentionPlan plan;
};

// Element (segment, row, head, dim) lies segment, row and head strides and dim elements on.
struct StridedHeads {
  const void* data;
  int64_t segment, row, head;
};

struct EncoderAttentionArgs {
  DType dtype;
  StridedHeads q, k, v;     // [segments, rows, heads, head_dim]; k and v of `keys` rows, q of the first of them
  const int64_t* lengths;   // [segments], read if block > 0
  void* out;                // [segments, rows, heads, head_dim]
  int64_t rows, keys;
  int64_t block;            // 0: every row sees all
  float scale;
  AttentionPlan plan;
};

struct PagedPrefillArgs {
  PagedAttentionArgs batch;
  AttentionPlan plan;  // sequences with one row have no rows there
};

struct GeluArgs {
  DType dtype;
  const void* x;
  void* out;  // may be x
  int64_t size;
  bool tanh;
};

struct AliasFreeSnakeArgs {
  DType dtype;
  const void* x;             // [num_rows, length], num_rows = batch * channels
  const float* alpha;        // [channels]
  const float* inv_beta;     // [channels]
  const float* up_filter;    // [12]
  const float* down_filter;  // [12]
  void* out;
  int64_t num_rows, channels, length;
};

struct DualEmbedArgs {
  DType dtype;
  const int64_t* audio_ids;  // [num_rows]
  const int64_t* text_ids;
  const void* table;         // [vocabulary, hidden]
  void* out;                 // [num_rows, hidden]
  int64_t num_rows, hidden;
  const void* features = nullptr;         // [.., hidden], or null: no row has one
  const int64_t* feature_rows = nullptr;  // [num_rows], into features, negative for none
};

struct GatherAddArgs {
  DType dtype;
  const void* x;         // [.., hidden]
  const void* residual;  // the same or null (plain gather)
  const int64_t* rows;   // [num_rows], or null for rows 0, 1, ...
  void* out;             // [num_rows, hidden]
  int64_t num_rows, hidden;
};

struct SampleTokensArgs {
  DType dtype;
  const void* logits;          // [num_rows, vocabulary], rows logits_stride apart
  int64_t logits_stride, vocabulary, num_rows;
  const int64_t* slots;        // [num_rows]; all below is per slot
  const int32_t* history;      // rows history_stride apart, history_len[slot] entries of each are there
  int64_t history_stride;
  const int64_t* history_len;
  const float *temperature, *penalty;  // entries parameter_stride apart
  const int64_t *top_k, *window;
  int64_t parameter_stride;
  const int64_t* seeds;
  int64_t stream;
  int64_t* out;                // [num_rows]
  const int64_t* lengths = nullptr;  // [num_rows] in place of the slots' history_len: so many entries are there
};

// Per-slot arrays of both streams.
struct StreamState {
  int32_t *text_history, *audio_history;  // [slots, capacity]
  int64_t capacity;
  int64_t *history_len, *stop;
  bool* text_ended;
  const bool* speaks;
  const int64_t* limit;
};

struct StreamIds {
  int64_t text_blank, text_eos, msg_end, media_end, delay;
};

struct AdvanceStreamsArgs {
  StreamState state;
  StreamIds ids;
  const int64_t *text, *audio, *slots;  // [num_rows]
  int64_t *text_out, *audio_out;        // [num_rows]; may be text and audio
  int64_t num_rows;
};

struct DecodeInputsArgs {
  const int64_t *slots, *base;  // [num_rows]
  const bool* runs;             // [2, num_rows]
  const int32_t* tables;        // [3, num_rows, max_pages]
  const int64_t* spare;         // [3]
  const int32_t *text_history, *audio_history;  // [last + 1, capacity]
  const int64_t *history_len, *stop;            // [last + 1]
  int64_t capacity, last, num_rows, max_pages, page_size, blank;
  int64_t *own, *text, *audio;  // [num_rows]
  int64_t *positions, *cache;   // [2, num_rows], [3, num_rows]
  int32_t* seq_lens;            // [3, num_rows]
};

// name, arguments
#define ANTIPHON_KERNELS(X)                      \
  X(read_probe, ReadProbeArgs)                   \
  X(linear, LinearArgs)                          \
  X(linear_wide_pack, LinearWideArgs)            \
  X(linear_wide, LinearWideArgs)                 \
  X(weight_to_panels, WeightPanelsArgs)          \
  X(weight_from_panels, WeightPanelsArgs)        \
  X(linear_compact, LinearCompactArgs)           \
  X(linear_compact_wide, LinearCompactWideArgs)  \
  X(compact_histogram, CompactHistogramArgs)     \
  X(compact_count, CompactPackArgs)              \
  X(compact_pack, CompactPackArgs)               \
  X(compact_widen, CompactWidenArgs)             \
  X(linear_fixed_weight, LinearFixedWeightArgs)  \
  X(linear_fixed_pack, LinearFixedArgs)          \
  X(linear_fixed, LinearFixedArgs)               \
  X(linear_int8, LinearInt8Args)                 \
  X(linear_int4, LinearInt4Args)                 \
  X(linear_planes, PlanesArgs)                   \
  X(linear_int8_wide, LinearInt8WideArgs)        \
  X(linear_int4_wide, LinearInt4WideArgs)        \
  X(rms_norm, RmsNormArgs)                       \
  X(silu_mul, SiluMulArgs)                       \
  X(rope_cache, RopeCacheArgs)                   \
  X(paged_attention, PagedAttentionArgs)         \
  X(layer_norm_modulate, LayerNormModulateArgs)  \
  X(layer_norm, LayerNormArgs)                   \
  X(gate_residual, GateResidualArgs)             \
  X(euler_step, EulerStepArgs)                   \
  X(flow_rope, FlowRopeArgs)                     \
  X(flow_attention, FlowAttentionArgs)           \
  X(encoder_attention, EncoderAttentionArgs)     \
  X(paged_prefill, PagedPrefillArgs)             \
  X(gelu, GeluArgs)                              \
  X(alias_free_snake, AliasFreeSnakeArgs)        \
  X(alias_free_snake_rows, SnakeRowsArgs)        \
  X(conv1d_rows, ConvRowsArgs)                   \
  X(conv1d_sheet, ConvSheetArgs)                 \
  X(conv1d_weight, ConvWeightArgs)               \
  X(conv1d, Conv1dArgs)                          \
  X(thin_conv1d, ThinConvArgs)                   \
  X(convert, ConvertArgs)                        \
  X(winograd_weight, WinogradWeightArgs)         \
  X(winograd_input, WinogradInputArgs)           \
  X(winograd_conv1d, WinogradConvArgs)           \
  X(dual_embed, DualEmbedArgs)                   \
  X(gather_add, GatherAddArgs)                   \
  X(sample_tokens, SampleTokensArgs)             \
  X(advance_streams, AdvanceStreamsArgs)         \
  X(decode_inputs, DecodeInputsArgs)

// And a constant of each instruction set: outputs of a panel of weights (linear_kernels.h).
#define ANTIPHON_DECLARE(name, Args) void name(const Args& args, int index, int count);
#define ANTIPHON_DECLARE_ALL ANTIPHON_KERNELS(ANTIPHON_DECLARE) extern const int64_t panel_outputs;
namespace scalar { ANTIPHON_DECLARE_ALL }
namespace avx2 { ANTIPHON_DECLARE_ALL }
namespace avx512 { ANTIPHON_DECLARE_ALL }
namespace avx512vnni { ANTIPHON_DECLARE_ALL }
namespace avx512bf16 { ANTIPHON_DECLARE_ALL }
namespace amx { ANTIPHON_DECLARE_ALL }
#undef ANTIPHON_DECLARE_ALL
#undef ANTIPHON_DECLARE

// The kernels of one instruction set.
#define ANTIPHON_POINTER(name, Args) void (*name)(const Args& args, int index, int count);
struct Kernels {
  ANTIPHON_KERNELS(ANTIPHON_POINTER)
  int64_t panel_outputs;
};
#undef ANTIPHON_POINTER

// Those of active_isa().
const Kernels& kernels();

}  // namespace antiphon
