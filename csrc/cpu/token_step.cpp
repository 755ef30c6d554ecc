#include "token_step.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "draft_length.h"

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

AttentionRows TokenStep::Rows::layout(int64_t width) const {
  return {static_cast<int64_t>(positions.size()), width, positions.data(), cache.data(), tables.data(),
          seq_lens.data()};
}

TokenStep::TokenStep(ModelStep& step, const RequestState& state, ModelStep* draft)
    : step_(step), draft_(draft), state_(state), draft_lengths_(state.num_slots, kFirstDraft) {
  const ModelWeights& m = step.weights();
  const int64_t bytes = kMaxSkinnyRows * m.vocabulary * (m.dtype == DType::f32 ? 4 : 2);
  for (auto& logits : logits_) logits = aligned_memory(bytes);  // pages that no batch needs are never touched
}

// Everything that the network reads at the places.
void TokenStep::gather(const TokenBatch& batch) {
  const int64_t page_size = step_.weights().page_size;
  width_ = 0;
  for (const Place& p : places_) {
    const int64_t at = batch.base[p.row] + p.length;
    check(p.length > 0 && p.length < state_.streams.capacity, "a history is empty or full");
    check(at >= 0 && at < batch.max_pages * page_size, "a position has no page");
    width_ = std::max(width_, at / page_size + 1);
  }
  trunk_.clear();
  for (const Place& p : places_)
    trunk_.add(batch, kTrunk, batch.slots[p.row], batch.base[p.row] + p.length, width_, page_size);
  upper_.clear();
  upper_rows_.clear();
  head_rows_.clear();
  gather_branch(batch, kText, batch.run_text);
  split_ = static_cast<int64_t>(upper_rows_.size());
  gather_branch(batch, kAudio, batch.run_audio);
}

void TokenStep::gather_branch(const TokenBatch& batch, int group, const bool* runs) {
  Draws& draws = draws_[group - kText];
  draws.places.clear();
  draws.slots.clear();
  draws.lengths.clear();
  for (size_t i = 0; i < places_.size(); ++i) {
    const Place& p = places_[i];
    if (!runs[p.row]) continue;
    const int64_t slot = batch.slots[p.row], index = static_cast<int64_t>(i);
    if (group == kText || p.length >= state_.head_delay) {
      head_rows_.push_back(static_cast<int64_t>(upper_rows_.size()));
      draws.places.push_back(index);
      draws.slots.push_back(slot);
      draws.lengths.push_back(p.length);
    }
    upper_rows_.push_back(index);
    upper_.add(batch, group, slot, batch.base[p.row] + p.length, width_, step_.weights().page_size);
  }
  draws.tokens.resize(draws.places.size());
}

SampleTokensArgs TokenStep::sampling(Draws& draws, int stream) const {
  const ModelWeights& m = step_.weights();
  const StreamState& s = state_.streams;
  return {m.dtype, logits_[stream].get(), m.vocabulary, m.vocabulary, static_cast<int64_t>(draws.slots.size()),
          draws.slots.data(), stream ? s.audio_history : s.text_history, s.capacity, s.history_len,
          state_.temperature + stream, state_.penalty + stream, state_.top_k + stream, state_.window + stream, 2,
          state_.seeds, stream, draws.tokens.data(), draws.lengths.data()};
}

// The network over what was gathered, and the tokens that its heads draw.
void TokenStep::network(ModelStep& step, const TokenBatch& batch) {
  std::vector<int64_t> audio, text;
  for (const Place& p : places_) {
    const Pair newest = pair_at(batch.slots[p.row], p.length - 1);
    audio.push_back(newest.audio);
    text.push_back(newest.text);
  }
  const SampleTokensArgs draws[2] = {sampling(draws_[0], 0), sampling(draws_[1], 1)};
  const int64_t text_heads = draws[0].num_rows, heads = static_cast<int64_t>(head_rows_.size());
  step.run({audio.data(), text.data(), trunk_.layout(width_), upper_.layout(width_), upper_rows_.data(), split_,
            head_rows_.data(), heads, text_heads, logits_[0].get(), logits_[1].get(), &draws[0], &draws[1]});
}

// One step over the places: their pairs, before the state machine. A stream without a head there gets blank.
void TokenStep::draw(ModelStep& step, const TokenBatch& batch) {
  gather(batch);
  network(step, batch);
  pairs_.assign(places_.size(), {state_.ids.text_blank, state_.ids.text_blank});
  for (size_t i = 0; i < draws_[0].places.size(); ++i) pairs_[draws_[0].places[i]].text = draws_[0].tokens[i];
  for (size_t i = 0; i < draws_[1].places.size(); ++i) pairs_[draws_[1].places[i]].audio = draws_[1].tokens[i];
}

TokenStep::Pair TokenStep::pair_at(int64_t slot, int64_t step) const {
  const StreamState& s = state_.streams;
  return {s.text_history[slot * s.capacity + step], s.audio_history[slot * s.capacity + step]};
}

// Moves one request's state on by the pair of a place; returns it as it was stored.
TokenStep::Pair TokenStep::advance(const TokenBatch& batch, size_t place) {
  Pair pair = pairs_[place];
  const int64_t* slot = batch.slots + places_[place].row;
  kernels().advance_streams({state_.streams, state_.ids, &pair.text, &pair.audio, slot, &pair.text, &pair.audio, 1}, 0,
                            1);
  return pair;
}

// The requests that still run, and how far their drafts may go.
void TokenStep::begin(const TokenBatch& batch, int64_t steps) {
  const StreamState& s = state_.streams;
  rounds_.clear();
  for (int64_t r = 0; r < batch.num_rows; ++r)
    if (done_[r] < steps && !s.stop[batch.slots[r]]) rounds_.push_back({r, s.history_len[batch.slots[r]], 0, 0, 1});
  if (!draft_) return;
  for (Round& round : rounds_)
    round.wanted = std::min(draft_lengths_[batch.slots[round.row]],
                            draft_room(batch, round, steps - done_[round.row]));
}

// Pairs behind which the request still has a place in this launch, whose pair needs no draft: up to its limit, its
// history's and its table's end, and as many as fit into one step of all requests.
int64_t TokenStep::draft_room(const TokenBatch& batch, const Round& round, int64_t left) const {
  const StreamState& s = state_.streams;
  const int64_t position = batch.base[round.row] + round.length;
  const int64_t places = std::min({left, s.limit[batch.slots[round.row]] - round.length, s.capacity - round.length,
                                   batch.max_pages * step_.weights().page_size - position,
                                   kMaxSkinnyRows / static_cast<int64_t>(rounds_.size())});
  return std::max<int64_t>(places - 1, 0);
}

// The draft's pairs, into the histories; the rest of the state is put back.
void TokenStep::propose(const TokenBatch& batch) {
  const StreamState& s = state_.streams;
  std::vector<char> text_ended;
  for (const Round& round : rounds_) text_ended.push_back(s.text_ended[batch.slots[round.row]]);
  for (int64_t i = 0;; ++i) {
    places_.clear();
    for (Round& round : rounds_)
      if (i < round.wanted && !s.stop[batch.slots[round.row]]) {
        places_.push_back({round.row, round.length + i});
        ++round.drafted;
      }
    if (places_.empty()) break;
    draw(*draft_, batch);
    for (size_t place = 0; place < places_.size(); ++place) advance(batch, place);
  }
  for (size_t i = 0; i < rounds_.size(); ++i) {
    Round& round = rounds_[i];
    const int64_t slot = batch.slots[round.row];
    round.num_places = round.drafted + (s.stop[slot] ? 0 : 1);  // nothing comes after a stop, if it is one
    s.history_len[slot] = round.length;
    s.stop[slot] = 0;
    s.text_ended[slot] = text_ended[i];
  }
}

// The model's step over the places of all requests.
void TokenStep::look(const TokenBatch& batch, StepWork& work) {
  places_.clear();
  for (const Round& round : rounds_)
    for (int64_t i = 0; i < round.num_places; ++i) places_.push_back({round.row, round.length + i});
  draw(step_, batch);
  work.trunk_rows += static_cast<int64_t>(places_.size());
  work.text_rows += split_;
  work.audio_rows += static_cast<int64_t>(upper_rows_.size()) - split_;
  work.text_heads += static_cast<int64_t>(draws_[0].places.size());
  work.audio_heads += static_cast<int64_t>(draws_[1].places.size());
}

// Of every request the pairs that were drawn from a history of its own: up to the first that was not foreseen.
void TokenStep::accept(const TokenBatch& batch, int64_t* drawn, StepWork& work) {
  size_t place = 0;
  for (const Round& round : rounds_) {
    const int64_t slot = batch.slots[round.row];
    int64_t accepted = 0;
    for (int64_t i = 0; i == accepted && i < round.num_places; ++i) {
      const Pair foreseen = pair_at(slot, round.length + i);  // before the pair itself takes its place
      const Pair pair = advance(batch, place + i);
      write(batch, round.row, done_[round.row]++, pair, drawn);
      accepted += i < round.drafted && pair == foreseen;
    }
    place += round.num_places;
    draft_lengths_[slot] = next_draft_length(draft_lengths_[slot], round.drafted, accepted);
    work.drafted += round.drafted;
    work.accepted += accepted;
  }
}

// A row's entries of one step.
void TokenStep::write(const TokenBatch& batch, int64_t row, int64_t step, Pair pair, int64_t* drawn) const {
  const int64_t n = batch.num_rows, slot = batch.slots[row];
  int64_t* entry = drawn + 4 * n * step + row;
  entry[0] = pair.text;
  entry[n] = pair.audio;
  entry[2 * n] = state_.streams.text_ended[slot];
  entry[3 * n] = state_.streams.stop[slot];
}

// The steps that stopped requests did not run.
void TokenStep::fill(const TokenBatch& batch, int64_t steps, int64_t* drawn) const {
  for (int64_t r = 0; r < batch.num_rows; ++r)
    for (int64_t step = done_[r]; step < steps; ++step)
      write(batch, r, step, {state_.ids.text_blank, state_.ids.text_blank}, drawn);
}

StepWork TokenStep::run(const TokenBatch& batch, int64_t steps, int64_t* drawn) {
  for (int64_t r = 0; r < batch.num_rows; ++r)
    check(batch.slots[r] >= 0 && batch.slots[r] < state_.num_slots, "no such slot");
  StepWork work;
  done_.assign(batch.num_rows, 0);
  for (begin(batch, steps); !rounds_.empty(); begin(batch, steps)) {
    propose(batch);
    look(batch, work);
    accept(batch, drawn, work);
  }
  fill(batch, steps, drawn);
  return work;
}

}  // namespace antiphon
