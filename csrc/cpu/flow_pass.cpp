#include "flow_pass.h"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "attention_plan.h"

namespace antiphon {
namespace {

constexpr int64_t kCountersPerLayer = 16, kCountersOutside = 8;
constexpr int64_t kModulations = 3;  // layers at a time

}  // namespace

FlowPass::FlowPass(FlowWeights weights, int64_t alone_work, int64_t packed_limit)
    : m_(std::move(weights)), alone_work_(alone_work), packed_limit_(packed_limit),
      modulations_(std::max<int64_t>(kModulations, m_.layers.size() + 1)),
      counters_(static_cast<int64_t>(m_.layers.size()) * kCountersPerLayer + kCountersOutside) {
  if (m_.layers.empty()) throw std::invalid_argument("flow pass: expected at least one layer");
}

void FlowPass::reserve(int64_t rows, int64_t tokens, int64_t modulations) {
  const int64_t hidden = m_.hidden(), size = size_of(m_.dtype), mlp = m_.layers[0].fc1.n;
  for (Aligned<char>* buffer : {&x_, &y_, &q_, &k_, &v_}) buffer->reserve(rows * hidden * size);
  branch_.reserve(rows * std::max(hidden, m_.output.n) * size);
  qkv_.reserve(rows * 3 * hidden * size);
  hidden_.reserve(rows * mlp * size);
  for (int64_t i = 0; i < modulations; ++i) modulations_[i].reserve(tokens * 6 * hidden * size);
  const PassFormat format(m_.dtype, m_.input);
  rows_.reserve(format, rows, std::max(hidden, m_.input.k));
  wide_.reserve(format, rows, mlp);
  tokens_.reserve(format, tokens, hidden);
}

struct FlowPass::Thread : PassThread {
  FlowPass& s;
  const FlowWeights& m;
  const FlowInput& in;
  const AttentionPlan& plan;    // of the evaluation
  const int64_t packed_stride;  // bytes from a layer's packed keys to the next one's; 0: all use the same memory
  const int64_t evaluation;     // 0, or the step
  const int64_t hidden = m.hidden(), rows = in.num_rows, mels = m.output.n;
  const int64_t tokens = rows / in.frames_per_token;

  // Shift, scale and gate vectors of a layer, of the final layer behind the last, for all evaluations at once: they
  // depend on times and tokens alone.
  void modulate(size_t layer) {
    if (evaluation > 0) return;
    PassThread together{format, index, count, next++};
    together.linear(layer < m.layers.size() ? m.layers[layer].modulation : m.final_modulation, nullptr,
                    in.modulation, s.tokens_, in.evaluations() * tokens, modulations(layer).data());
  }

  // Kept for the evaluations that follow, if any do; else those of three layers, for while one thread makes the next
  // layer's, another may be at the end of the one before.
  const Aligned<char>& modulations(size_t layer) const {
    return s.modulations_[in.evaluations() > 1 ? layer : layer % kModulations];
  }

  // Vector `part` of the modulations of a layer, of the final one behind the last, from the token of `row` on.
  const char* vector(size_t layer, int64_t row, int64_t part) const {
    return at(modulations(layer), evaluation * tokens + row / in.frames_per_token, width(layer)) +
           part * hidden * size;
  }
  int64_t width(size_t layer) const { return (layer < m.layers.size() ? 6 : 2) * hidden; }

  // x += gate * branch
  void add_branch(size_t layer, int64_t part, int64_t row, int64_t n) const {
    char* x = at(s.x_, row, hidden);
    kernel.gate_residual({m.dtype, x, at(s.branch_, row, hidden), vector(layer, row, part), x, width(layer), n, hidden,
                          in.frames_per_token}, 0, 1);
  }

  // y = norm(x), modulated by vectors `part` and `part` + 1, packed.
  void norm(size_t layer, int64_t part, int64_t row, int64_t n) const {
    kernel.layer_norm_modulate({m.dtype, at(s.x_, row, hidden), vector(layer, row, part), vector(layer, row, part + 1),
                                at(s.y_, row, hidden), width(layer), width(layer), n, hidden, in.frames_per_token,
                                m.eps}, 0, 1);
    pack(s.y_.data(), row, n, hidden, s.rows_);
  }

  // x of a layer complete, y ready for its first linear map.
  void enter(size_t layer) {
    blocks(rows, [&](int64_t row, int64_t n) {
      if (layer > 0) add_branch(layer - 1, 5, row, n);
      norm(layer, 0, row, n);
    });
    wait();
  }

  void project(const PassLinear& w, const PassLinear& then, const Aligned<char>& x, const Aligned<char>& out) {
    linear(w, &then, x.data(), s.rows_, rows, out.data());
    wait();
  }

  void rotate() {
    blocks(rows, [&](int64_t row, int64_t n) {
      kernel.flow_rope({m.dtype, at(s.qkv_, row, 3 * hidden), in.positions + row, m.cos, m.sin, at(s.q_, row, hidden),
                        at(s.k_, row, hidden), at(s.v_, row, hidden), 3 * hidden, n, m.num_heads,
                        hidden / m.num_heads}, 0, 1);
    });
    meet();
  }

  char* window(void* cache, size_t layer) const {
    return static_cast<char*>(cache) + static_cast<int64_t>(layer) * in.layer_stride * size;
  }

  // y = attention of the rotated q, k and v.
  void attend(size_t layer) {
    const int64_t dim = hidden / m.num_heads;
    AttentionPlan of_layer = plan;
    of_layer.workspace = static_cast<char*>(plan.workspace) + static_cast<int64_t>(layer) * packed_stride;
    of_layer.next = next;
    next += 2;
    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
    kernel.flow_attention({m.dtype, s.q_.data(), s.k_.data(), s.v_.data(), in.cu_seqlens, window(in.keys, layer),
                           window(in.values, layer), in.slots, in.cache_lens, s.y_.data(), in.window, scale, of_layer},
                          index, count);
    meet();
  }

  // Keys and values of the kept rows to their places.
  void store(size_t layer) const {
    const Range range = partition(in.num_kept, 1, index, count);
    for (int64_t i = range.begin; i < range.end; ++i) {
      std::memcpy(window(in.keys, layer) + in.places[i] * hidden * size, at(s.k_, in.kept[i], hidden), hidden * size);
      std::memcpy(window(in.values, layer) + in.places[i] * hidden * size, at(s.v_, in.kept[i], hidden), hidden * size);
    }
  }

  void layer(size_t i) {
    const FlowLayer& w = m.layers[i];
    const bool ends = !in.out && i + 1 == m.layers.size();
    enter(i);
    if (!ends) modulate(i + 1);
    project(w.qkv, w.proj, s.y_, s.qkv_);
    rotate();
    if (ends) return store(i);
    attend(i);
    if (!in.out) {
      store(i);
      meet();
    }
    blocks(rows, [&](int64_t row, int64_t n) { pack(s.y_.data(), row, n, hidden, s.rows_); });
    wait();
    project(w.proj, w.fc1, s.y_, s.branch_);
    blocks(rows, [&](int64_t row, int64_t n) {
      add_branch(i, 2, row, n);
      norm(i, 3, row, n);
    });
    wait();
    linear_gelu(w.fc1, w.fc2, s.y_.data(), s.rows_, rows, s.hidden_, Activation::gelu_tanh, s.wide_);
    const PassLinear& then = i + 1 < m.layers.size() ? m.layers[i + 1].qkv : m.output;
    linear(w.fc2, &then, s.hidden_.data(), s.wide_, rows, s.branch_.data());
    wait();
  }

  // Before the first of the evaluations: what the modulations and the input map read.
  void start() {
    blocks(in.evaluations() * tokens, [&](int64_t row, int64_t n) { pack(in.modulation, row, n, hidden, s.tokens_); });
    blocks(rows, [&](int64_t row, int64_t n) { pack(in.x, row, n, m.input.k, s.rows_); });
    meet();
  }

  // The pass from packed rows of x, which a solver's step leaves as it found them: packed, and in `out`.
  void evaluate(const void* x) {
    modulate(0);
    linear(m.input, &m.layers[0].qkv, x, s.rows_, rows, s.x_.data());
    meet();
    for (size_t i = 0; i < m.layers.size(); ++i) layer(i);
    if (!in.out) return;
    enter(m.layers.size());
    if (in.num_steps == 0) return linear(m.output, nullptr, s.y_.data(), s.rows_, rows, in.out);
    meet();  // the output's rows are narrower: those of one thread lie where another's wide ones were
    linear(m.output, &m.input, s.y_.data(), s.rows_, rows, s.branch_.data());
    meet();
    blocks(rows, [&](int64_t row, int64_t n) {
      char* state = static_cast<char*>(in.out) + row * mels * size;
      if (evaluation == 0) std::memcpy(state, static_cast<const char*>(in.x) + row * mels * size, n * mels * size);
      kernel.euler_step({m.dtype, state, at(s.branch_, row, mels), n * mels, in.widths[evaluation]}, 0, 1);
      pack(in.out, row, n, mels, s.rows_);
    });
  }
};

void FlowPass::run(const FlowInput& in) {
  if (in.frames_per_token < 1 || kPassRows % in.frames_per_token || in.num_rows % in.frames_per_token)
    throw std::invalid_argument("flow pass: expected 1, 2, 4, 8 or 16 frames a token, and whole tokens");
  const std::lock_guard<std::mutex> lock(busy_);
  reserve(in.num_rows, in.evaluations() * (in.num_rows / in.frames_per_token),
          in.evaluations() > 1 ? static_cast<int64_t>(m_.layers.size()) + 1 : kModulations);
  const FlowLayer& w = m_.layers[0];
  const int64_t dim = m_.hidden() / m_.num_heads;
  AttentionUnits all(m_.num_heads, dim), current(m_.num_heads, dim);  // current: steps with keys of the current rows
  int64_t work = in.num_rows * m_.hidden() * (w.qkv.n + w.proj.n + 2 * w.fc1.n);
  for (int64_t i = 0; i < in.num_streams; ++i) {
    const int64_t rows = in.cu_seqlens[i + 1] - in.cu_seqlens[i];
    all.add(rows, rows + in.cache_lens[i]);
    current.add(rows, rows + in.cache_lens[i], in.cache_lens[i]);
    work += 2 * rows * (rows + in.cache_lens[i]) * m_.hidden();
  }
  // Memory of its own for each layer pays if a later evaluation finds something of the window in it.
  const int64_t kept_bytes = static_cast<int64_t>(m_.layers.size()) * all.packed_bytes(m_.dtype);
  const bool keeps = in.evaluations() > 1 && current.steps() < all.steps() && kept_bytes <= packed_limit_;
  const AttentionPlan first = keeps ? all.plan_in(packed_.reserve_unset(kept_bytes)) : all.plan();
  const AttentionPlan later = keeps ? current.plan_in(first.workspace) : first;
  for (int64_t evaluation = 0; evaluation < in.evaluations(); ++evaluation) {
    std::atomic<int64_t>* counters = counters_.restart();
    const auto walk = [&](int index, int count) {
      const bool apart = w.qkv.in_panels() && count > 1 && in.num_rows >= kOwnRows * count;
      Thread thread{{{m_.dtype, m_.input}, index, count, counters, apart, in.frames_per_token}, *this, m_, in,
                    evaluation == 0 ? first : later, keeps ? all.packed_bytes(m_.dtype) : 0, evaluation};
      if (evaluation == 0) thread.start();
      thread.evaluate(evaluation == 0 ? in.x : in.out);
    };
    work < alone_work_ ? walk(0, 1) : parallel(walk);
  }
}

}  // namespace antiphon
