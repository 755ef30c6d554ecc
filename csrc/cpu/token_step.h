// Decode steps from the requests' state to their next pairs of tokens, as one call: what a step reads, the network with
// its heads, sampling and the state machine of both streams. Only rows, branches and heads that are needed are run, as
// in the eager step, and the kernels are the operators', so the tokens are the same.
//
// With a draft, smaller weights of the same model, steps go by rounds. The draft draws a few pairs of each request, one
// step after the other; then the model computes the positions of all of them as rows of one step, which costs little
// more than one row, since the weights are what is read. A position's pair is the model's own: a row has the same bits
// in any batch, and a draw depends on the seed, the number of pairs before it and the history alone. It counts as long
// as everything before it was foreseen; the first that was not is the last of its round. So the pairs are those of steps
// without a draft. A step writes the keys and values of all its rows before it reads any, so those of the draft are
// overwritten before the model reads them; what a round leaves behind the last pair that counts is overwritten by the
// next before anybody reads it, or lies behind the end of an answer, where nobody does.
#pragma once

#include <cstdint>
#include <vector>

#include "model_step.h"

namespace antiphon {

// Arrays over slots, entries [slots, 2] for text and audio where two streams have their own. Owned by the caller.
struct RequestState {
  StreamState streams;
  const float *temperature, *penalty;
  const int64_t *top_k, *window;
  const int64_t* seeds;
  int64_t num_slots;
  int64_t head_delay;  // steps of a request in which the audio head does not run
  StreamIds ids;
};

// Requests that have drawn before, one row each, in distinct slots.
struct TokenBatch {
  int64_t num_rows;
  const int64_t *slots, *base;  // base: positions before the first pair, minus one
  const bool *run_text, *run_audio;
  const int32_t* tables[3];     // [slots, max_pages] of trunk, text and audio branch
  int64_t max_pages;
};

// Rows and heads that the model computed; pairs that its draft proposed, and those of them that it accepted.
struct StepWork {
  int64_t trunk_rows = 0, text_rows = 0, audio_rows = 0, text_heads = 0, audio_heads = 0;
  int64_t drafted = 0, accepted = 0;
};

class TokenStep {
 public:
  // draft: the same model with other matrices, on the same pages; null for none.
  TokenStep(ModelStep& step, const RequestState& state, ModelStep* draft);

  // `steps` steps one after the other, whose pages must all be there. drawn [steps, 4, num_rows]: text, audio,
  // text_ended, stop. A request that stops runs no further; its entries behind that mean nothing. Throws where a slot,
  // a position or a history is out of bounds.
  StepWork run(const TokenBatch& batch, int64_t steps, int64_t* drawn);

 private:
  // Rows of one attention launch.
  struct Rows {
    std::vector<int64_t> positions, cache;
    std::vector<int32_t> tables, seq_lens;

    void clear();
    void add(const TokenBatch& batch, int group, int64_t slot, int64_t position, int64_t width, int64_t page_size);
    AttentionRows layout(int64_t width) const;
  };
  // Where a pair is drawn: a row of the batch, and how many pairs its request has before it.
  struct Place {
    int64_t row, length;
  };
  struct Pair {
    int64_t text, audio;
    bool operator==(const Pair& other) const { return text == other.text && audio == other.audio; }
  };
  // The tokens that one head draws: their places, by index, with slot and length.
  struct Draws {
    std::vector<int64_t> places, slots, lengths, tokens;
  };
  // A request in one round: the pairs that it had before; those to be drafted at most, those that were, and the places
  // that the model looks at.
  struct Round {
    int64_t row, length, wanted, drafted, num_places;
  };

  void begin(const TokenBatch& batch, int64_t steps);
  int64_t draft_room(const TokenBatch& batch, const Round& round, int64_t left) const;
  void propose(const TokenBatch& batch);
  void look(const TokenBatch& batch, StepWork& work);
  void accept(const TokenBatch& batch, int64_t* drawn, StepWork& work);
  void fill(const TokenBatch& batch, int64_t steps, int64_t* drawn) const;

  void draw(ModelStep& step, const TokenBatch& batch);
  void gather(const TokenBatch& batch);
  void gather_branch(const TokenBatch& batch, int group, const bool* runs);
  void network(ModelStep& step, const TokenBatch& batch);
  SampleTokensArgs sampling(Draws& draws, int stream) const;
  Pair advance(const TokenBatch& batch, size_t place);
  Pair pair_at(int64_t slot, int64_t step) const;
  void write(const TokenBatch& batch, int64_t row, int64_t step, Pair pair, int64_t* drawn) const;

  ModelStep& step_;
  ModelStep* draft_;
  const RequestState state_;
  AlignedMemory logits_[2];  // [kMaxSkinnyRows, vocabulary] each
  Rows trunk_, upper_;
  std::vector<Place> places_;  // of the step that runs
  std::vector<Pair> pairs_;    // drawn there
  std::vector<int64_t> upper_rows_, head_rows_;
  Draws draws_[2];
  int64_t width_ = 0, split_ = 0;
  std::vector<Round> rounds_;
  std::vector<int64_t> done_;           // steps of this launch, by row
  std::vector<int64_t> draft_lengths_;  // by slot: how well a request is foreseen is its own matter
};

}  // namespace antiphon
