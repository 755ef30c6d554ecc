#include "encoder_pass.h"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "attention_plan.h"

namespace antiphon {
namespace {

constexpr int64_t kCountersPerLayer = 12, kCountersOutside = 8;
constexpr int64_t kPadding = 2;   // rows of zeros around a segment's frames
constexpr int64_t kSilence = 10;  // frames between what differs and the end for which the third last row sees neither
constexpr int64_t kLastRows = 2;  // that see the end

}  // namespace

EncoderPass::EncoderPass(EncoderWeights weights)
    : m_(std::move(weights)),
      counters_(static_cast<int64_t>(m_.layers.size()) * kCountersPerLayer + kCountersOutside) {
  if (m_.layers.empty()) throw std::invalid_argument("encoder pass: expected at least one layer");
}

void EncoderPass::reserve(const EncoderInput& in) {
  const int64_t hidden = m_.hidden(), size = size_of(m_.dtype), mlp = m_.layers[0].fc1.n;
  const int64_t frames = in.num_segments * (in.frames + kPadding), rows = frames / 2;
  frames_.reserve(frames * hidden * size);
  for (Aligned<char>* buffer : {&x_, &y_, &branch_}) buffer->reserve(rows * hidden * size);
  qkv_.reserve(rows * 3 * hidden * size);
  hidden_.reserve(rows * mlp * size);
  const PassFormat format(m_.dtype, m_.conv1);
  rows_.reserve(format, frames, m_.conv1.k);
  rows_.reserve(format, rows, m_.conv2.k);
  wide_.reserve(format, rows, mlp);
}

// Frames that are all the same up to the end, as where silence fills a window up, give the same row but for the first and the
// last ones: of so many that there is such a row the convolutions see no more.
EncoderPass::Sound EncoderPass::sound_of(const EncoderInput& in) {
  const int64_t row = m_.num_mels() * size_of(m_.dtype);
  const auto segment = [&](const void* mels, int64_t frames, int64_t i) {
    return static_cast<const char*>(mels) + i * (frames + kPadding) * row;
  };
  int64_t varied = 0;  // frames of a segment up to the last one that differs from its end
  for (int64_t i = 0; i < in.num_segments; ++i) {
    const char *first = segment(in.mels, in.frames, i) + m_.leading * row, *last = first + (in.frames - 1) * row;
    int64_t n = in.frames - 1;
    while (n > varied && std::memcmp(first + (n - 1) * row, last, row) == 0) --n;
    varied = n;
  }
  const int64_t frames = (varied + kSilence + 1) / 2 * 2;
  if (frames >= in.frames) return {in.mels, in.frames};
  mels_.reserve(in.num_segments * (frames + kPadding) * row);
  for (int64_t i = 0; i < in.num_segments; ++i) {
    char* to = mels_.data() + i * (frames + kPadding) * row;
    std::memcpy(to, segment(in.mels, in.frames, i), (m_.leading + frames) * row);
    std::memset(to + (m_.leading + frames) * row, 0, (kPadding - m_.leading) * row);
  }
  return {mels_.data(), frames};
}

struct EncoderPass::Thread : PassThread {
  EncoderPass& s;
  const EncoderWeights& m;
  const EncoderInput& in;
  const Sound& sound;
  const AttentionPlan &plan, &last_plan;
  const int64_t hidden = m.hidden();
  const int64_t length = in.frames / 2, convolved = sound.frames / 2;  // rows of a segment
  const int64_t all_rows = in.num_segments * length, wanted_rows = in.num_segments * in.wanted;

  char* out(int64_t row) const { return static_cast<char*>(in.out) + row * hidden * size; }

  void normalise(const PassVectors& w, const void* x, void* y, int64_t n) const {
    kernel.layer_norm({dtype, x, w.weight, w.bias, y, n, hidden, m.eps}, 0, 1);
  }

  // to = x + y
  void add(const void* x, const void* y, void* to, int64_t n) const {
    kernel.gather_add({dtype, x, y, nullptr, to, n, hidden}, 0, 1);
  }

  void gelu(const char* x, char* to, int64_t elements) const { kernel.gelu({dtype, x, to, elements, false}, 0, 1); }

  // y = norm(x), packed.
  void ready(const PassVectors& norm, const char* x, int64_t row, int64_t n) const {
    normalise(norm, x, at(s.y_, row, hidden), n);
    pack(s.y_.data(), row, n, hidden, s.rows_);
  }

  // Both convolutions. Rows of windows run on from one segment to the next; those that straddle two are computed
  // like the others and land where the zeros between segments belong, which is written last.
  void convolve() {
    const int64_t period = sound.frames + kPadding, frames = in.num_segments * period - kPadding;
    blocks(frames, [&](int64_t row, int64_t n) { pack(sound.mels, m.num_mels(), row, n, m.conv1.k, s.rows_); });
    meet();
    linear(m.conv1, &m.conv2, sound.mels, m.num_mels(), s.rows_, frames, at(s.frames_, m.leading, hidden));
    meet();
    blocks(in.num_segments * period, [&](int64_t row, int64_t n) {
      for (int64_t i = row; i < row + n; ++i) {
        const int64_t frame = i % period - m.leading;
        char* x = at(s.frames_, i, hidden);
        0 <= frame && frame < sound.frames ? gelu(x, x, hidden) : static_cast<void>(std::memset(x, 0, hidden * size));
      }
    });
    meet();
    const int64_t rows = in.num_segments * period / 2 - 1;
    blocks(rows, [&](int64_t row, int64_t n) { pack(s.frames_.data(), 2 * hidden, row, n, m.conv2.k, s.rows_); });
    meet();
    linear(m.conv2, &m.layers[0].qkv, s.frames_.data(), 2 * hidden, s.rows_, rows, s.branch_.data());
    meet();
  }

  // The convolved row of a segment that row `i` is.
  int64_t convolved_row(int64_t i) const {
    if (i < convolved - kLastRows) return i;
    return i >= length - kLastRows ? convolved - length + i : convolved - kLastRows - 1;
  }

  // x = gelu(convolved) + positions, without the rows between segments.
  void place() {
    blocks(all_rows, [&](int64_t row, int64_t n) {
      for (int64_t i = row; i < row + n; ++i) {
        char* x = at(s.x_, i, hidden);
        gelu(at(s.branch_, i / length * (convolved + 1) + convolved_row(i % length), hidden), x, hidden);
        add(x, static_cast<const char*>(m.positions) + i % length * hidden * size, x, 1);
      }
      ready(m.layers[0].attn_norm, at(s.x_, row, hidden), row, n);
    });
    wait();
  }

  // y = attention of all rows, or of the wanted ones.
  void attend(bool ends) {
    AttentionPlan of_layer = ends ? last_plan : plan;
    of_layer.next = next;
    next += 2;
    const int64_t dim = hidden / m.num_heads;
    const auto part = [&](int64_t i) {
      return StridedHeads{s.qkv_.data() + i * hidden * size, length * 3 * hidden, 3 * hidden, dim};
    };
    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
    kernel.encoder_attention({dtype, part(0), part(1), part(2), in.lengths, s.y_.data(), ends ? in.wanted : length,
                              length, in.block, scale, of_layer}, index, count);
    meet();
  }

  // The residual after attention; of the last layer only the wanted rows go on, in `out`.
  void add_attention(bool ends, int64_t row, int64_t n) const {
    if (!ends) return add(at(s.x_, row, hidden), at(s.branch_, row, hidden), at(s.x_, row, hidden), n);
    for (int64_t i = row; i < row + n; ++i)
      add(at(s.x_, i / in.wanted * length + i % in.wanted, hidden), at(s.branch_, i, hidden), out(i), 1);
  }

  // The first linear map's rows are packed before, and those of the next layer after it.
  void layer(size_t i) {
    const EncoderLayer& w = m.layers[i];
    const bool ends = i + 1 == m.layers.size();
    const int64_t rows = ends ? wanted_rows : all_rows;
    linear(w.qkv, &w.out, s.y_.data(), s.rows_, all_rows, s.qkv_.data());
    meet();
    attend(ends);
    blocks(rows, [&](int64_t row, int64_t n) { pack(s.y_.data(), row, n, hidden, s.rows_); });
    wait();
    linear(w.out, &w.fc1, s.y_.data(), s.rows_, rows, s.branch_.data());
    wait();
    const auto x = [&](int64_t row) { return ends ? out(row) : at(s.x_, row, hidden); };
    blocks(rows, [&](int64_t row, int64_t n) {
      add_attention(ends, row, n);
      ready(w.mlp_norm, x(row), row, n);
    });
    wait();
    linear_gelu(w.fc1, w.fc2, s.y_.data(), s.rows_, rows, s.hidden_, Activation::gelu_exact, s.wide_);
    linear(w.fc2, ends ? nullptr : &m.layers[i + 1].qkv, s.hidden_.data(), s.wide_, rows, s.branch_.data());
    wait();
    blocks(rows, [&](int64_t row, int64_t n) {
      add(x(row), at(s.branch_, row, hidden), x(row), n);
      if (!ends) ready(m.layers[i + 1].attn_norm, x(row), row, n);
      if (ends && m.final_norm.weight) normalise(m.final_norm, x(row), x(row), n);
    });
    wait();
  }

  void encode() {
    convolve();
    place();
    for (size_t i = 0; i < m.layers.size(); ++i) layer(i);
  }
};

void EncoderPass::run(const EncoderInput& in) {
  const int64_t length = in.frames / 2;
  if (in.num_segments < 1 || in.frames < 2 || in.frames % 2 || in.wanted < 1 || in.wanted > length)
    throw std::invalid_argument("encoder pass: expected segments of an even number of frames, and 1 row to half of that");
  const std::lock_guard<std::mutex> lock(busy_);
  reserve(in);
  const int64_t dim = m_.hidden() / m_.num_heads;
  AttentionUnits all(m_.num_heads, dim), wanted(m_.num_heads, dim);
  for (int64_t s = 0; s < in.num_segments; ++s) {
    const int64_t keys = in.block > 0 ? std::min(in.lengths[s], length) : length;
    all.add(length, keys);
    wanted.add(in.wanted, keys);
  }
  const AttentionPlan plan = all.plan(), last_plan = wanted.plan_in(plan.workspace);
  const Sound sound = sound_of(in);
  std::atomic<int64_t>* counters = counters_.restart();
  parallel([&](int index, int count) {
    const bool apart = m_.layers[0].qkv.in_panels() && count > 1 && in.num_segments * length >= kOwnRows * count;
    Thread{{{m_.dtype, m_.conv1}, index, count, counters, apart}, *this, m_, in, sound, plan,
           last_plan}.encode();
  });
}

}  // namespace antiphon
