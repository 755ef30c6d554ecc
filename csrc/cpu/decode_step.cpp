#include "decode_step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace antiphon {
namespace {

constexpr int64_t kMaxRows = 2 * kMaxSkinnyRows;  // both branches

int64_t size_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

}  // namespace

char* DecodeStep::buffer(int64_t elements_per_row, int64_t rows) {
  const int64_t bytes = elements_per_row * rows * size_of(m_.dtype);
  memory_.push_back(aligned_memory(bytes));
  return static_cast<char*>(std::memset(memory_.back().get(), 0, bytes));
}

DecodeStep::DecodeStep(ModelWeights weights) : m_(std::move(weights)) {
  const int64_t heads = m_.num_heads * m_.head_dim, kv_heads = m_.num_kv_heads * m_.head_dim;
  x_ = buffer(m_.hidden, kMaxRows);
  residual_ = buffer(m_.hidden, kMaxRows);
  y_ = buffer(m_.hidden, kMaxRows);
  state_ = buffer(m_.hidden, kMaxRows);
  qkv_ = buffer(heads + 2 * kv_heads, kMaxRows);
  q_ = buffer(heads, kMaxRows);
  attended_ = buffer(heads, kMaxRows);
  gate_up_ = buffer(2 * m_.intermediate, kMaxRows);
  activated_ = buffer(m_.intermediate, kMaxRows);
  for (int32_t i = 0; i <= kMaxRows; ++i) starts_.push_back(i);
  claims_.reset(new std::atomic<int64_t>[4 * kMaxThreads * kClaimStride]);
}

// One thread's walk through the step. Each method is one or more phases; a phase ends when all threads have finished
// it. Rows of a branch start at `row` of every buffer.
struct DecodeStep::Thread {
  const DecodeStep& s;
  const ModelWeights& m;
  const Kernels& kernel;
  const int index, count;
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

  // Counters of a linear map, of two sets by turns.
  std::atomic<int64_t>* claims(int64_t set) const { return s.claims_.get() + set * 2 * count * kClaimStride; }

  // This thread's own start again; the others must have finished with the set.
  void restart(int64_t set) const {
    for (int branch = 0; branch < 2; ++branch)
      claims(set)[(branch * count + index) * kClaimStride].store(0, std::memory_order_relaxed);
  }

  void linear(const char* x, const Matrix& w, const void* bias, void* out, int64_t rows, int64_t split, int64_t n,
              int64_t k) const {
    const int64_t set = linear_maps++ % 2;
    restart(1 - set);  // the map before this one used it
    std::atomic<int64_t>* next = claims(set);
    if (w.format == Format::int8)
      phase(kernel.linear_int8, LinearInt8Args{m.dtype, x, k, static_cast<const int8_t*>(w.weight),
                                               static_cast<const float*>(w.scale), bias, out, rows, split, n, k,
                                               next});
    else if (w.format == Format::int4)
      phase(kernel.linear_int4, LinearInt4Args{m.dtype, x, k, static_cast<const uint8_t*>(w.weight),
                                               static_cast<const bf16*>(w.scale), bias, out, rows, split, n, k,
                                               next});
    else if (w.format == Format::compact)
      phase(kernel.linear_compact,
            LinearCompactArgs{m.dtype, x, k, static_cast<const uint8_t*>(w.weight), static_cast<const int32_t*>(w.scale),
                              bias, out, rows, split, n, k, next});
    else
      phase(kernel.linear, LinearArgs{m.dtype, x, k, w.weight, k, bias, out, rows, split, n, k, next});
  }

  void gather(const char* x, const char* residual, const int64_t* rows, char* out, int64_t num_rows) const {
    phase(kernel.gather_add, GatherAddArgs{m.dtype, x, residual, rows, out, num_rows, m.hidden});
  }

  void attention(const LayerWeights& w, const DecodeLayout& l) const {
    phase(kernel.rope_cache,
          RopeCacheArgs{m.dtype, s.qkv_, l.positions, m.cos, m.sin, l.slots, w.k_cache, w.v_cache, s.q_, l.num_rows,
                        m.num_heads, m.num_kv_heads, m.head_dim});
    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(m.head_dim)));
    phase(kernel.paged_attention,
          PagedAttentionArgs{m.dtype, s.q_, w.k_cache, w.v_cache, l.block_tables, s.starts_.data(), l.seq_lens,
                             s.attended_, l.num_rows, l.max_pages, m.page_size, m.num_heads, m.num_kv_heads,
                             m.head_dim, scale});
  }

  // In: the state without the last contribution in residual_, the contribution in x_ (or, for the first layer of a
  // run, the whole state in residual_). Out: the same two.
  void layer(const LayerWeights& w, const DecodeLayout& l, int64_t split, bool first) const {
    const int64_t rows = l.num_rows, heads = m.num_heads * m.head_dim;
    const int64_t qkv = heads + 2 * m.num_kv_heads * m.head_dim;
    first ? norm(s.residual_, nullptr, w.input_norm, s.y_, rows, split)
          : norm(s.x_, s.residual_, w.input_norm, s.y_, rows, split);
    linear(s.y_, w.qkv, w.qkv_bias, s.qkv_, rows, split, qkv, m.hidden);
    attention(w, l);
    linear(s.attended_, w.output, nullptr, s.x_, rows, split, m.hidden, heads);
    norm(s.x_, s.residual_, w.post_norm, s.y_, rows, split);
    linear(s.y_, w.gate_up, nullptr, s.gate_up_, rows, split, 2 * m.intermediate, m.hidden);
    phase(kernel.silu_mul, SiluMulArgs{m.dtype, s.gate_up_, s.activated_, rows, m.intermediate});
    linear(s.activated_, w.down, nullptr, s.x_, rows, split, m.hidden, m.intermediate);
  }

  void trunk(const DecodeInput& in) const {
    restart(0);
    phase(kernel.dual_embed, DualEmbedArgs{m.dtype, in.audio_ids, in.text_ids, m.embed, s.residual_,
                                           in.trunk.num_rows, m.hidden});
    for (size_t i = 0; i < m.trunk.size(); ++i) layer(m.trunk[i], in.trunk, in.trunk.num_rows, i == 0);
  }

  // Upper layers [first, last) for rows [begin, end) of the branches, whose states stand in state_, in place.
  void upper(const DecodeLayout& all, int64_t split, int64_t first, int64_t last, int64_t begin, int64_t end) const {
    if (first >= last || begin >= end) return;
    const DecodeLayout l{end - begin, all.max_pages, all.positions + begin, all.slots + begin,
                         all.block_tables + begin * all.max_pages, all.seq_lens + begin};
    char* state = s.state_ + begin * m.hidden * size;
    gather(state, nullptr, nullptr, s.residual_, l.num_rows);
    for (int64_t j = first; j < last; ++j) layer(m.upper[j], l, split, j == first);
    gather(s.x_, s.residual_, nullptr, state, l.num_rows);
  }

  void heads(const DecodeInput& in) const {
    const int64_t text = in.head_split, audio = in.num_head_rows - text;
    gather(s.state_, nullptr, in.head_rows, s.x_, in.num_head_rows);
    norm(s.x_, nullptr, m.final_norm, s.y_, in.num_head_rows, text);
    if (text) linear(s.y_, m.lm_head, nullptr, in.text_logits, text, text, m.vocabulary, m.hidden);
    if (audio)
      linear(s.y_ + text * m.hidden * size, m.audio_head, nullptr, in.audio_logits, audio, audio, m.vocabulary,
             m.hidden);
  }

  // Both streams at once: one hands out rows from the first thread on, the other from the last.
  void draw(const DecodeInput& in) const {
    if (in.text_draw) kernel.sample_tokens(*in.text_draw, index, count);
    if (in.audio_draw) kernel.sample_tokens(*in.audio_draw, count - 1 - index, count);
  }

  void step(const DecodeInput& in) const {
    trunk(in);
    const int64_t rows = in.upper.num_rows, paired = std::min(m.num_text_layers, m.num_audio_layers);
    gather(s.x_, s.residual_, in.upper_rows, s.state_, rows);
    upper(in.upper, in.split, 0, paired, 0, rows);
    upper(in.upper, in.split, paired, m.num_text_layers, 0, in.split);
    upper(in.upper, rows - in.split, paired, m.num_audio_layers, in.split, rows);
    heads(in);
    draw(in);
  }
};

void DecodeStep::run(const DecodeInput& in) {
  const int64_t largest = std::max({in.trunk.num_rows, in.split, in.upper.num_rows - in.split});
  if (largest > kMaxSkinnyRows || in.trunk.num_rows < 1) throw std::invalid_argument("decode step: 1 to 16 rows");
  const Kernels& kernel = kernels();
  parallel([&](int index, int count) { Thread{*this, m_, kernel, index, count}.step(in); });
}

}  // namespace antiphon
