// Decode steps from the requests' state to their next pairs of tokens, as one call: what a step reads, the network with
// its heads, sampling and the state machine of both streams. Only rows, branches and heads that are needed are run, as
// in the eager step, and the kernels are the operators', so the tokens are the same.
#pragma once

#include <cstdint>
#include <vector>

#include "decode_step.h"

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

// Rows and heads that were computed.
struct StepWork {
  int64_t trunk_rows = 0, text_rows = 0, audio_rows = 0, text_heads = 0, audio_heads = 0;
};

class TokenStep {
 public:
  TokenStep(DecodeStep& step, const RequestState& state);

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
    DecodeLayout layout(int64_t width) const;
  };
  // The tokens that one head draws: the batch's rows and their slots.
  struct Draws {
    std::vector<int64_t> rows, slots, tokens;
  };

  void gather(const TokenBatch& batch);
  void gather_branch(const TokenBatch& batch, int group, const bool* runs, int64_t width);
  void network(const TokenBatch& batch);
  SampleTokensArgs draw(Draws& draws, int stream) const;
  void advance(const TokenBatch& batch, int64_t* drawn);
  int64_t position(const TokenBatch& batch, int64_t row) const;

  DecodeStep& step_;
  const RequestState state_;
  AlignedMemory logits_[2];  // [kMaxSkinnyRows, vocabulary] each
  Rows trunk_, upper_;
  std::vector<int64_t> live_, upper_rows_, head_rows_;
  Draws draws_[2];
  int64_t width_ = 0, split_ = 0;
};

}  // namespace antiphon
