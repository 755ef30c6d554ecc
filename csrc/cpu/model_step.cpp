#include "model_step.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "attention_plan.h"

namespace antiphon {
namespace {

constexpr int64_t kRowsAtATime = 64;  // by which buffers grow

int64_t size_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

}  // namespace

ModelStep::ModelStep(ModelWeights weights)
    : m_(std::move(weights)),
      // Of every layer four maps and attention's two, and the heads.
      counters_(6 * static_cast<int64_t>(m_.trunk.size() + m_.upper.size()) + 2) {
  reserve(2 * kMaxSkinnyRows, kMaxSkinnyRows);
  for (int32_t i = 0; i <= 2 * kMaxStepRows; ++i) starts_.push_back(i);
  claims_.reset(new std::atomic<int64_t>[4 * kMaxThreads * kClaimStride]);
}

// Buffers for so many rows, of which at most `most` are of one branch.
void ModelStep::reserve(int64_t rows, int64_t most) {
  const int64_t size = size_of(m_.dtype), heads = m_.num_heads * m_.head_dim;
  const int64_t qkv = heads + 2 * m_.num_kv_heads * m_.head_dim;
  for (Aligned<char>* of_hidden : {&x_, &residual_, &y_, &state_}) of_hidden->reserve(rows * m_.hidden * size);
  qkv_.reserve(rows * qkv * size);
  for (Aligned<char>* of_heads : {&q_, &attended_}) of_heads->reserve(rows * heads * size);
  gate_up_.reserve(rows * 2 * m_.intermediate * size);
  activated_.reserve(rows * m_.intermediate * size);
  if (most <= kMaxSkinnyRows) return;
  // In blocks of 16 of each branch, however rows are split: as many as of 16 rows more.
  const int64_t all = rows + 16, widest = std::max({m_.hidden, heads, m_.intermediate});
  packed_rows_.reserve(std::max(linear_wide_workspace(all, all, widest) * size, linear_planes_bytes(all, all, widest)));
}

// Rows [begin, end) of a layout, whole sequences, with what attention needs for those of them that are prompts.
struct ModelStep::Part {
  Part(const ModelWeights& m, const AttentionRows& all, int64_t begin, int64_t end) {
    const auto sequence = [&](int64_t row) {
      const int32_t* first = all.first_rows;
      return first ? std::lower_bound(first, first + all.num_sequences + 1, row) - first : row;
    };
    const int64_t first = sequence(begin), last = sequence(end);
    layout = {end - begin, all.max_pages, all.positions + begin, all.slots + begin,
              all.block_tables + first * all.max_pages, all.seq_lens + first, last - first};
    if (!all.first_rows) return;
    for (int64_t s = first; s <= last; ++s) first_rows.push_back(static_cast<int32_t>(all.first_rows[s] - begin));
    layout.first_rows = first_rows.data();
    if (layout.num_rows == layout.num_sequences) return;
    prompts.emplace(m.num_kv_heads, m.head_dim);
    prompts->add_prompts(layout.first_rows, layout.seq_lens, layout.num_sequences, m.num_heads / m.num_kv_heads);
  }

  int64_t packed_bytes() const { return prompts ? prompts->packed_bytes() : 0; }

  AttentionRows layout;
  std::vector<int32_t> first_rows;
  std::optional<AttentionUnits> prompts;  // none: every sequence has one row
  AttentionPlan plan{};
};

// One thread's walk through the step. Each method is one or more phases; a phase ends when all threads have finished
// it. Rows of both branches stand in every buffer, text first.
struct ModelStep::Thread {
  const ModelStep& s;
  const ModelWeights& m;
  const Kernels& kernel;
  const int index, count;
  mutable std::atomic<int64_t>* next;  // counter of the next phase that has one
  const int64_t size = size_of(m.dtype);
  mutable int64_t linear_maps = 0;  // so far

  template <class Args>
  void phase(void (*function)(const Args&, int, int), const Args& args) const {
    function(args, index, count);
    job_barrier(count);
  }

  void norm(const char* x, const char* residual, const void* weight, char* out, int64_t rows, int64_t split) const {
    phase(kernel.rms_norm, RmsNormArgs{m.dtype, x, residual, weight, out, const_cast<char*>(residual), rows, split,
                                       m.hidden, m.eps});
  }

  // Counters of a linear map of few rows, of two sets by turns.
  std::atomic<int64_t>* claims(int64_t set) const { return s.claims_.get() + set * 2 * count * kClaimStride; }

  // This thread's own start again; the others must have finished with the set.
  void restart(int64_t set) const {
    for (int branch = 0; branch < 2; ++branch)
      claims(set)[(branch * count + index) * kClaimStride].store(0, std::memory_order_relaxed);
  }

  void linear(const char* x, const Matrix& w, const void* bias, void* out, int64_t rows, int64_t split, int64_t n,
              int64_t k) const {
    if (std::max(split, rows - split) > kMaxSkinnyRows) return wide(x, w, bias, out, rows, split, n, k);
    const int64_t set = linear_maps++ % 2;
    restart(1 - set);  // the map before this one used it
    std::atomic<int64_t>* claimed = claims(set);
    if (w.format == Format::int8)
      phase(kernel.linear_int8, LinearInt8Args{m.dtype, x, k, static_cast<const int8_t*>(w.weight),
                                               static_cast<const float*>(w.scale), bias, out, rows, split, n, k,
                                               claimed});
    else if (w.format == Format::int4)
      phase(kernel.linear_int4, LinearInt4Args{m.dtype, x, k, static_cast<const uint8_t*>(w.weight),
                                               static_cast<const bf16*>(w.scale), bias, out, rows, split, n, k,
                                               claimed});
    else if (w.format == Format::compact)
      phase(kernel.linear_compact,
            LinearCompactArgs{m.dtype, x, k, static_cast<const uint8_t*>(w.weight),
                              static_cast<const int32_t*>(w.scale), bias, out, rows, split, n, k, claimed});
    else
      phase(kernel.linear, LinearArgs{m.dtype, x, k, w.weight, k, bias, out, rows, split, n, k, claimed});
  }

  // The same for any number of rows.
  void wide(const char* x, const Matrix& w, const void* bias, void* out, int64_t rows, int64_t split, int64_t n,
            int64_t k) const {
    std::atomic<int64_t>* claimed = next++;
    if (w.format == Format::int8 || w.format == Format::int4) {
      const PlanesArgs planes =
          planes_in(reinterpret_cast<int8_t*>(s.packed_rows_.data()), m.dtype, x, k, rows, split, k);
      phase(kernel.linear_planes, planes);
      const SplitRows packed{planes.planes, planes.steps, claimed};
      if (w.format == Format::int8)
        return phase(kernel.linear_int8_wide,
                     LinearInt8WideArgs{{m.dtype, x, k, static_cast<const int8_t*>(w.weight),
                                         static_cast<const float*>(w.scale), bias, out, rows, split, n, k}, packed});
      return phase(kernel.linear_int4_wide,
                   LinearInt4WideArgs{{m.dtype, x, k, static_cast<const uint8_t*>(w.weight),
                                       static_cast<const bf16*>(w.scale), bias, out, rows, split, n, k}, packed});
    }
    const bool plain = w.format == Format::plain;
    const LinearWideArgs args{m.dtype, x, k, plain ? w.weight : nullptr, plain ? k : 0, bias, out,
                              s.packed_rows_.data(), claimed, rows, split, n, k};
    phase(kernel.linear_wide_pack, args);
    if (plain) return phase(kernel.linear_wide, args);
    phase(kernel.linear_compact_wide, LinearCompactWideArgs{args, static_cast<const uint8_t*>(w.weight),
                                                            static_cast<const int32_t*>(w.scale)});
  }

  void gather(const char* x, const char* residual, const int64_t* rows, char* out, int64_t num_rows) const {
    phase(kernel.gather_add, GatherAddArgs{m.dtype, x, residual, rows, out, num_rows, m.hidden});
  }

  void attention(const LayerWeights& w, const Part& part) const {
    const AttentionRows& l = part.layout;
    phase(kernel.rope_cache,
          RopeCacheArgs{m.dtype, s.qkv_.data(), l.positions, m.cos, m.sin, l.slots, w.k_cache, w.v_cache, s.q_.data(),
                        l.num_rows, m.num_heads, m.num_kv_heads, m.head_dim});
    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(m.head_dim)));
    const PagedAttentionArgs args{m.dtype, s.q_.data(), w.k_cache, w.v_cache, l.block_tables,
                                  l.first_rows ? l.first_rows : s.starts_.data(), l.seq_lens, s.attended_.data(),
                                  l.num_sequences, l.max_pages, m.page_size, m.num_heads, m.num_kv_heads, m.head_dim,
                                  scale};
    if (!part.prompts) return phase(kernel.paged_attention, args);
    kernel.paged_attention(args, index, count);  // the rows that are alone; the next one takes the others
    AttentionPlan plan = part.plan;
    plan.next = next;
    next += 2;
    phase(kernel.paged_prefill, PagedPrefillArgs{args, plan});
  }

  // In: the state without the last contribution in residual_, the contribution in x_ (or, for the first layer of a
  // run, the whole state in residual_). Out: the same two.
  void layer(const LayerWeights& w, const Part& part, int64_t split, bool first) const {
    const int64_t rows = part.layout.num_rows, heads = m.num_heads * m.head_dim;
    const int64_t qkv = heads + 2 * m.num_kv_heads * m.head_dim;
    first ? norm(s.residual_.data(), nullptr, w.input_norm, s.y_.data(), rows, split)
          : norm(s.x_.data(), s.residual_.data(), w.input_norm, s.y_.data(), rows, split);
    linear(s.y_.data(), w.qkv, w.qkv_bias, s.qkv_.data(), rows, split, qkv, m.hidden);
    attention(w, part);
    linear(s.attended_.data(), w.output, nullptr, s.x_.data(), rows, split, m.hidden, heads);
    norm(s.x_.data(), s.residual_.data(), w.post_norm, s.y_.data(), rows, split);
    linear(s.y_.data(), w.gate_up, nullptr, s.gate_up_.data(), rows, split, 2 * m.intermediate, m.hidden);
    phase(kernel.silu_mul, SiluMulArgs{m.dtype, s.gate_up_.data(), s.activated_.data(), rows, m.intermediate});
    linear(s.activated_.data(), w.down, nullptr, s.x_.data(), rows, split, m.hidden, m.intermediate);
  }

  void trunk(const StepInput& in, const Part& part) const {
    const int64_t rows = in.trunk.num_rows;
    restart(0);
    phase(kernel.dual_embed, DualEmbedArgs{m.dtype, in.audio_ids, in.text_ids, m.embed, s.residual_.data(), rows,
                                           m.hidden, in.features, in.feature_rows});
    for (size_t i = 0; i < m.trunk.size(); ++i) layer(m.trunk[i], part, rows, i == 0);
  }

  // Upper layers [first, last) for rows of the branches from `begin` on, whose states stand in state_, in place.
  void upper(const Part& part, int64_t split, int64_t first, int64_t last, int64_t begin) const {
    const int64_t rows = part.layout.num_rows;
    if (first >= last || rows == 0) return;
    char* state = s.state_.data() + begin * m.hidden * size;
    gather(state, nullptr, nullptr, s.residual_.data(), rows);
    for (int64_t j = first; j < last; ++j) layer(m.upper[j], part, split, j == first);
    gather(s.x_.data(), s.residual_.data(), nullptr, state, rows);
  }

  void heads(const StepInput& in) const {
    const int64_t text = in.head_split, audio = in.num_head_rows - text;
    gather(s.state_.data(), nullptr, in.head_rows, s.x_.data(), in.num_head_rows);
    norm(s.x_.data(), nullptr, m.final_norm, s.y_.data(), in.num_head_rows, text);
    if (text) linear(s.y_.data(), m.lm_head, nullptr, in.text_logits, text, text, m.vocabulary, m.hidden);
    if (audio)
      linear(s.y_.data() + text * m.hidden * size, m.audio_head, nullptr, in.audio_logits, audio, audio, m.vocabulary,
             m.hidden);
  }

  // Both streams at once: one hands out rows from the first thread on, the other from the last.
  void draw(const StepInput& in) const {
    if (in.text_draw) kernel.sample_tokens(*in.text_draw, index, count);
    if (in.audio_draw) kernel.sample_tokens(*in.audio_draw, count - 1 - index, count);
  }

  void step(const StepInput& in, const Part& all, const Part& both, const Part& text, const Part& audio) const {
    trunk(in, all);
    const int64_t rows = in.upper.num_rows, paired = std::min(m.num_text_layers, m.num_audio_layers);
    gather(s.x_.data(), s.residual_.data(), in.upper_rows, s.state_.data(), rows);
    upper(both, in.split, 0, paired, 0);
    upper(text, in.split, paired, m.num_text_layers, 0);
    upper(audio, rows - in.split, paired, m.num_audio_layers, in.split);
    heads(in);
    draw(in);
  }
};

void ModelStep::run(const StepInput& in) {
  const int64_t rows = in.trunk.num_rows, branches = in.upper.num_rows;
  const int64_t most = std::max({rows, in.split, branches - in.split});
  if (rows < 1 || most > kMaxStepRows || in.num_head_rows > branches)
    throw std::invalid_argument("model step: expected 1 to " + std::to_string(kMaxStepRows) +
                                " rows of the trunk, at most as many of a branch and logits of some of them, got " +
                                std::to_string(rows) + ", " + std::to_string(in.split) + " and " +
                                std::to_string(branches - in.split) + ", logits of " + std::to_string(in.num_head_rows));
  const int64_t whole = most > kMaxSkinnyRows ? kRowsAtATime : 1;  // so that they seldom grow
  reserve((std::max(rows, branches) + whole - 1) / whole * whole, most);
  Part all(m_, in.trunk, 0, rows), both(m_, in.upper, 0, branches), text(m_, in.upper, 0, in.split),
      audio(m_, in.upper, in.split, branches);
  Part* parts[] = {&all, &both, &text, &audio};
  int64_t packed = 0;
  for (const Part* part : parts) packed = std::max(packed, part->packed_bytes());
  packed_keys_.reserve_unset(packed);
  for (Part* part : parts)
    if (part->prompts) part->plan = part->prompts->plan_in(packed_keys_.data());
  const Kernels& kernel = kernels();
  std::atomic<int64_t>* counters = counters_.restart();
  parallel([&](int index, int count) {
    Thread{*this, m_, kernel, index, count, counters}.step(in, all, both, text, audio);
  });
}

}  // namespace antiphon
