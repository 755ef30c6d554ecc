#include "flow_pass.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "attention_plan.h"

namespace antiphon {
namespace {

constexpr int64_t kBlock = 16;  // rows of a tile
constexpr int64_t kCountersPerLayer = 16, kCountersOutside = 8;

int64_t size_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

}  // namespace

FlowPass::FlowPass(FlowWeights weights, int64_t alone_work)
    : m_(std::move(weights)), alone_work_(alone_work),
      num_counters_(static_cast<int64_t>(m_.layers.size()) * kCountersPerLayer + kCountersOutside),
      counters_(new std::atomic<int64_t>[num_counters_]) {
  if (m_.layers.empty()) throw std::invalid_argument("flow pass: expected at least one layer");
}

void FlowPass::reserve(int64_t rows, int64_t tokens) {
  const int64_t hidden = m_.hidden(), size = size_of(m_.dtype), mlp = m_.layers[0].fc1.n;
  for (Aligned<char>* buffer : {&x_, &y_, &branch_, &q_, &k_, &v_}) buffer->reserve(rows * hidden * size);
  qkv_.reserve(rows * 3 * hidden * size);
  hidden_.reserve(rows * mlp * size);
  for (Aligned<char>& buffer : modulations_) buffer.reserve(tokens * 6 * hidden * size);
  const auto tiles = [&](Operand& to, int64_t n, int64_t k) {
    to.tiles.reserve(m_.dtype == DType::f32 ? linear_fixed_bytes(n, k) : linear_wide_workspace(n, n, k) * size);
    to.scales.reserve((n + kBlock - 1) / kBlock * kBlock);
  };
  tiles(rows_, rows, std::max({hidden, mlp, m_.input.k}));
  tiles(tokens_, tokens, hidden);
}

// One thread's walk through the evaluation. A phase ends when all threads have finished it; within one, threads take
// blocks of rows or panels of columns as they come, each phase by a counter of its own.
struct FlowPass::Thread {
  FlowPass& s;
  const FlowWeights& m;
  const Kernels& kernel;
  const FlowInput& in;
  const AttentionPlan& plan;
  const int index, count;
  std::atomic<int64_t>* next;  // counter of the next phase
  const int64_t size = size_of(m.dtype), hidden = m.hidden(), rows = in.num_rows;
  const int64_t tokens = rows / in.frames_per_token;

  // f(first, n) for every block of up to 16 of the rows; a kernel that f calls does its block alone.
  template <class F>
  void blocks(int64_t num_rows, const F& f) {
    std::atomic<int64_t>* claimed = next++;
    for (int64_t row; (row = claimed->fetch_add(1, std::memory_order_relaxed) * kBlock) < num_rows;)
      f(row, std::min(kBlock, num_rows - row));
  }

  char* at(const Aligned<char>& buffer, int64_t row, int64_t width) const { return buffer.data() + row * width * size; }

  // A block of rows of x [.., k].
  void pack(const void* x, int64_t row, int64_t n, int64_t k, const Operand& to) const {
    const char* block = static_cast<const char*>(x) + row * k * size;
    if (m.dtype == DType::f32)
      kernel.linear_fixed_pack({reinterpret_cast<const float*>(block), k, nullptr, nullptr, nullptr, nullptr,
                                reinterpret_cast<int8_t*>(to.tiles.data()) + linear_fixed_bytes(row, k),
                                to.scales.data() + row, nullptr, n, 0, k}, 0, 1);
    else
      kernel.linear_wide_pack({reinterpret_cast<const bf16*>(block), k, nullptr, nullptr, nullptr,
                               reinterpret_cast<bf16*>(to.tiles.data()) + row * k, nullptr, n, n, 0, k}, 0, 1);
  }

  // out = x W^T + bias, x packed before.
  void linear(const FlowLinear& w, const void* x, const Operand& packed, int64_t num_rows, void* out) {
    std::atomic<int64_t>* claimed = next++;
    if (m.dtype == DType::f32)
      kernel.linear_fixed({static_cast<const float*>(x), w.k, static_cast<const int8_t*>(w.weight), w.scales,
                           static_cast<const float*>(w.bias), static_cast<float*>(out),
                           reinterpret_cast<int8_t*>(packed.tiles.data()), packed.scales.data(), claimed, num_rows, w.n,
                           w.k}, index, count);
    else
      kernel.linear_wide({static_cast<const bf16*>(x), w.k, static_cast<const bf16*>(w.weight),
                          static_cast<const bf16*>(w.bias), static_cast<bf16*>(out),
                          reinterpret_cast<bf16*>(packed.tiles.data()), claimed, num_rows, num_rows, w.n, w.k}, index,
                         count);
  }

  // Shift, scale and gate vectors of a layer, of the final layer behind the last.
  void modulate(size_t layer) {
    linear(layer < m.layers.size() ? m.layers[layer].modulation : m.final_modulation, in.modulation, s.tokens_, tokens,
           s.modulations_[layer % 2].data());
  }

  // Vector `part` of the modulations of a layer, from the token of `row` on.
  const char* vector(size_t layer, int64_t row, int64_t part) const {
    return at(s.modulations_[layer % 2], row / in.frames_per_token, width(layer)) + part * hidden * size;
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
    job_barrier(count);
  }

  void project(const FlowLinear& w, const Aligned<char>& x, const Aligned<char>& out) {
    linear(w, x.data(), s.rows_, rows, out.data());
    job_barrier(count);
  }

  void rotate() {
    blocks(rows, [&](int64_t row, int64_t n) {
      kernel.flow_rope({m.dtype, at(s.qkv_, row, 3 * hidden), in.positions + row, m.cos, m.sin, at(s.q_, row, hidden),
                        at(s.k_, row, hidden), at(s.v_, row, hidden), 3 * hidden, n, m.num_heads,
                        hidden / m.num_heads}, 0, 1);
    });
    job_barrier(count);
  }

  char* window(void* cache, size_t layer) const {
    return static_cast<char*>(cache) + static_cast<int64_t>(layer) * in.layer_stride * size;
  }

  // y = attention of the rotated q, k and v.
  void attend(size_t layer) {
    const int64_t dim = hidden / m.num_heads;
    AttentionPlan of_layer = plan;
    of_layer.next = next;
    next += 2;
    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
    kernel.flow_attention({m.dtype, s.q_.data(), s.k_.data(), s.v_.data(), in.cu_seqlens, window(in.keys, layer),
                           window(in.values, layer), in.slots, in.cache_lens, s.y_.data(), in.window, scale, of_layer},
                          index, count);
    job_barrier(count);
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
    project(w.qkv, s.y_, s.qkv_);
    rotate();
    if (ends) return store(i);
    attend(i);
    if (!in.out) store(i);
    blocks(rows, [&](int64_t row, int64_t n) { pack(s.y_.data(), row, n, hidden, s.rows_); });
    job_barrier(count);
    project(w.proj, s.y_, s.branch_);
    blocks(rows, [&](int64_t row, int64_t n) {
      add_branch(i, 2, row, n);
      norm(i, 3, row, n);
    });
    job_barrier(count);
    project(w.fc1, s.y_, s.hidden_);
    blocks(rows, [&](int64_t row, int64_t n) {
      char* x = at(s.hidden_, row, w.fc1.n);
      kernel.gelu({m.dtype, x, x, n * w.fc1.n, true}, 0, 1);
      pack(s.hidden_.data(), row, n, w.fc1.n, s.rows_);
    });
    job_barrier(count);
    project(w.fc2, s.hidden_, s.branch_);
  }

  void evaluate() {
    blocks(tokens, [&](int64_t row, int64_t n) { pack(in.modulation, row, n, hidden, s.tokens_); });
    blocks(rows, [&](int64_t row, int64_t n) { pack(in.x, row, n, m.input.k, s.rows_); });
    job_barrier(count);
    modulate(0);
    linear(m.input, in.x, s.rows_, rows, s.x_.data());
    job_barrier(count);
    for (size_t i = 0; i < m.layers.size(); ++i) layer(i);
    if (!in.out) return;
    enter(m.layers.size());
    linear(m.output, s.y_.data(), s.rows_, rows, in.out);
  }
};

void FlowPass::run(const FlowInput& in) {
  if (in.frames_per_token < 1 || kBlock % in.frames_per_token || in.num_rows % in.frames_per_token)
    throw std::invalid_argument("flow pass: expected 1, 2, 4, 8 or 16 frames a token, and whole tokens");
  const std::lock_guard<std::mutex> lock(busy_);
  reserve(in.num_rows, in.num_rows / in.frames_per_token);
  const FlowLayer& w = m_.layers[0];
  AttentionUnits units(m_.num_heads, m_.hidden() / m_.num_heads);
  int64_t work = in.num_rows * m_.hidden() * (w.qkv.n + w.proj.n + 2 * w.fc1.n);
  for (int64_t i = 0; i < in.num_streams; ++i) {
    const int64_t rows = in.cu_seqlens[i + 1] - in.cu_seqlens[i];
    units.add(rows, rows + in.cache_lens[i]);
    work += 2 * rows * (rows + in.cache_lens[i]) * m_.hidden();
  }
  const AttentionPlan plan = units.plan();
  for (int64_t i = 0; i < num_counters_; ++i) counters_[i].store(0, std::memory_order_relaxed);
  const auto walk = [&](int index, int count) {
    Thread{*this, m_, kernels(), in, plan, index, count, counters_.get()}.evaluate();
  };
  work < alone_work_ ? walk(0, 1) : parallel(walk);
}

}  // namespace antiphon
