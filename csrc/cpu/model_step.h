// One step of the dual-head model over a batch, decodes and prompts, as a single job: weights and buffers are bound once,
// then each step is one call. It runs the same kernels in the same order as the operators do, so its results are theirs,
// bit for bit. Reference behaviour, section 8.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "aligned.h"
#include "counters.h"
#include "kernels.h"

namespace antiphon {

enum class Format : int64_t { plain = 0, int8 = 1, int4 = 2, compact = 3 };

// One linear map in branch form, as `linear`, `linear_int8`, `linear_int4` or `linear_compact` takes it; no scale if plain,
// codes in its place if compact.
struct Matrix {
  Format format;
  const void *weight, *scale;
};

// A layer in branch form: one or two branches for every weight of it.
struct LayerWeights {
  const void *input_norm, *qkv_bias, *post_norm;
  void *k_cache, *v_cache;  // pages of this layer
  Matrix qkv, output, gate_up, down;
};

struct ModelWeights {
  DType dtype;
  int64_t hidden, intermediate, num_heads, num_kv_heads, head_dim, page_size, vocabulary;
  int64_t num_text_layers, num_audio_layers;  // layers of `upper` that each branch has
  float eps;
  const void *embed, *final_norm;                         // final_norm [2, hidden]
  Matrix lm_head, audio_head;
  const float *cos, *sin;
  std::vector<LayerWeights> trunk, upper;
};

// Rows of one attention launch, those of a sequence one after the other.
struct AttentionRows {
  int64_t num_rows, max_pages;
  const int64_t *positions, *slots;              // [num_rows]
  const int32_t *block_tables, *seq_lens;        // [sequences, max_pages], [sequences]
  int64_t num_sequences = num_rows;
  const int32_t* first_rows = nullptr;           // [sequences + 1], or null: each has one row
};

struct StepInput {
  const int64_t *audio_ids, *text_ids;  // [trunk.num_rows]
  AttentionRows trunk, upper;
  const int64_t* upper_rows;            // [upper.num_rows], rows of the trunk; text first, `split` of them
  int64_t split;
  const int64_t* head_rows;             // [num_head_rows], rows of the upper part; text first, `head_split` of them
  int64_t num_head_rows, head_split;
  void *text_logits, *audio_logits;     // [head_split, vocabulary], [num_head_rows - head_split, vocabulary]
  const SampleTokensArgs *text_draw = nullptr, *audio_draw = nullptr;  // what to draw from them, or null
  const void* features = nullptr;       // as dual_embed takes them
  const int64_t* feature_rows = nullptr;
};

// Rows of a step at most: for more, what single calls of operators cost is little, and buffers of this size much.
constexpr int64_t kMaxStepRows = 512;

class ModelStep {
 public:
  explicit ModelStep(ModelWeights weights);
  // At most kMaxStepRows rows in the trunk and in each branch, else throws; more than kMaxSkinnyRows where every matrix has
  // a kernel for many rows.
  void run(const StepInput& input);
  const ModelWeights& weights() const { return m_; }

 private:
  struct Thread;
  struct Part;
  void reserve(int64_t rows, int64_t most);

  const ModelWeights m_;
  std::vector<int32_t> starts_;  // 0, 1, 2, ...: first rows of one-row sequences
  std::unique_ptr<std::atomic<int64_t>[]> claims_;  // [2 sets][2 branches][threads], kClaimStride apart
  PassCounters counters_;
  Aligned<char> x_, residual_, y_, state_, qkv_, q_, attended_, gate_up_, activated_;
  Aligned<char> packed_rows_, packed_keys_;  // x as maps of many rows read it; keys and values of prompts
};

}  // namespace antiphon
