#include "token_step.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace antiphon {
namespace {

enum Group { kTrunk = 0, kText = 1, kAudio = 2 };

void check(bool holds, const char* what) {
  if (!holds) throw std::out_of_range(std::string("token step: ") + what);
}

}  // namespace

void TokenStep::Rows::clear() {
  positions.clear();
  cache.clear();
  tables.clear();
  seq_lens.clear();
}

void TokenStep::Rows::add(const TokenBatch& batch, int group, int64_t slot, int64_t position, int64_t width,
                          int64_t page_size) {
  const int32_t* pages = batch.tables[group] + slot * batch.max_pages;
  positions.push_back(position);
  cache.push_back(pages[position / page_size] * page_size + position % page_size);
  tables.insert(tables.end(), pages, pages + width);
  seq_lens.push_back(static_cast<int32_t>(position + 1));
}

DecodeLayout TokenStep::Rows::layout(int64_t width) const {
  return {static_cast<int64_t>(positions.size()), width, positions.data(), cache.data(), tables.data(),
          seq_lens.data()};
}

TokenStep::TokenStep(DecodeStep& step, const RequestState& state) : step_(step), state_(state) {
  const ModelWeights& m = step.weights();
  const int64_t bytes = kMaxSkinnyRows * m.vocabulary * (m.dtype == DType::f32 ? 4 : 2);
  for (auto& logits : logits_) logits = aligned_memory(bytes);  // pages that no batch needs are never touched
}

int64_t TokenStep::position(const TokenBatch& batch, int64_t row) const {
  return batch.base[row] + state_.streams.history_len[batch.slots[row]];
}

// Everything that the network reads, for the requests that still run.
void TokenStep::gather(const TokenBatch& batch) {
  const int64_t page_size = step_.weights().page_size;
  live_.clear();
  width_ = 0;
  for (int64_t r = 0; r < batch.num_rows; ++r) {
    const int64_t slot = batch.slots[r];
    check(slot >= 0 && slot < state_.num_slots, "no such slot");
    if (state_.streams.stop[slot]) continue;
    const int64_t length = state_.streams.history_len[slot], at = position(batch, r);
    check(length > 0 && length < state_.streams.capacity, "a history is empty or full");
    check(at >= 0 && at < batch.max_pages * page_size, "a position has no page");
    live_.push_back(r);
    width_ = std::max(width_, at / page_size + 1);
  }
  trunk_.clear();
  for (int64_t r : live_) trunk_.add(batch, kTrunk, batch.slots[r], position(batch, r), width_, page_size);
  upper_.clear();
  upper_rows_.clear();
  head_rows_.clear();
  gather_branch(batch, kText, batch.run_text, width_);
  split_ = static_cast<int64_t>(upper_rows_.size());
  gather_branch(batch, kAudio, batch.run_audio, width_);
}

void TokenStep::gather_branch(const TokenBatch& batch, int group, const bool* runs, int64_t width) {
  Draws& draws = draws_[group - kText];
  draws.rows.clear();
  draws.slots.clear();
  for (size_t i = 0; i < live_.size(); ++i) {
    const int64_t r = live_[i], slot = batch.slots[r];
    if (!runs[r]) continue;
    if (group == kText || state_.streams.history_len[slot] >= state_.head_delay) {
      head_rows_.push_back(static_cast<int64_t>(upper_rows_.size()));
      draws.rows.push_back(r);
      draws.slots.push_back(slot);
    }
    upper_rows_.push_back(static_cast<int64_t>(i));
    upper_.add(batch, group, slot, position(batch, r), width, step_.weights().page_size);
  }
  draws.tokens.resize(draws.rows.size());
}

SampleTokensArgs TokenStep::draw(Draws& draws, int stream) const {
  const ModelWeights& m = step_.weights();
  const StreamState& s = state_.streams;
  return {m.dtype, logits_[stream].get(), m.vocabulary, m.vocabulary, static_cast<int64_t>(draws.slots.size()),
          draws.slots.data(), stream ? s.audio_history : s.text_history, s.capacity, s.history_len,
          state_.temperature + stream, state_.penalty + stream, state_.top_k + stream, state_.window + stream, 2,
          state_.seeds, stream, draws.tokens.data()};
}

// The network over what was gathered, and the tokens that its heads draw.
void TokenStep::network(const TokenBatch& batch) {
  const StreamState& s = state_.streams;
  std::vector<int64_t> audio, text;
  for (int64_t r : live_) {
    const int64_t newest = batch.slots[r] * s.capacity + s.history_len[batch.slots[r]] - 1;
    audio.push_back(s.audio_history[newest]);
    text.push_back(s.text_history[newest]);
  }
  const SampleTokensArgs draws[2] = {draw(draws_[0], 0), draw(draws_[1], 1)};
  const int64_t text_heads = draws[0].num_rows, heads = static_cast<int64_t>(head_rows_.size());
  step_.run({audio.data(), text.data(), trunk_.layout(width_), upper_.layout(width_), upper_rows_.data(), split_,
             head_rows_.data(), heads, text_heads, logits_[0].get(), logits_[1].get(), &draws[0], &draws[1]});
}

// Moves the state of the live rows on and writes a step's results [4, num_rows].
void TokenStep::advance(const TokenBatch& batch, int64_t* drawn) {
  const int64_t n = batch.num_rows;
  std::fill(drawn, drawn + 2 * n, state_.ids.text_blank);
  for (int stream = 0; stream < 2; ++stream)
    for (size_t i = 0; i < draws_[stream].rows.size(); ++i)
      drawn[stream * n + draws_[stream].rows[i]] = draws_[stream].tokens[i];
  std::vector<int64_t> text, audio, slots;
  for (int64_t r : live_) {
    text.push_back(drawn[r]);
    audio.push_back(drawn[n + r]);
    slots.push_back(batch.slots[r]);
  }
  kernels().advance_streams({state_.streams, state_.ids, text.data(), audio.data(), slots.data(), text.data(),
                             audio.data(), static_cast<int64_t>(slots.size())},
                            0, 1);
  for (size_t i = 0; i < live_.size(); ++i) {
    drawn[live_[i]] = text[i];
    drawn[n + live_[i]] = audio[i];
  }
  for (int64_t r = 0; r < n; ++r) {
    drawn[2 * n + r] = state_.streams.text_ended[batch.slots[r]];
    drawn[3 * n + r] = state_.streams.stop[batch.slots[r]];
  }
}

StepWork TokenStep::run(const TokenBatch& batch, int64_t steps, int64_t* drawn) {
  StepWork work;
  for (int64_t i = 0; i < steps; ++i, drawn += 4 * batch.num_rows) {
    gather(batch);
    if (!live_.empty()) network(batch);
    advance(batch, drawn);
    work.trunk_rows += static_cast<int64_t>(live_.size());
    work.text_rows += split_;
    work.audio_rows += static_cast<int64_t>(upper_rows_.size()) - split_;
    work.text_heads += static_cast<int64_t>(draws_[0].rows.size());
    work.audio_heads += static_cast<int64_t>(draws_[1].rows.size());
  }
  return work;
}

}  // namespace antiphon
