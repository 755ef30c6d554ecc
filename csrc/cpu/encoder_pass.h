// One pass of an audio encoder (Whisper's shape: two convolutions, positions, layers) over segments of one length, as a
// single job: weights are bound once, buffers are kept. Reference behaviour, sections 5 and 6.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "network_pass.h"

namespace antiphon {

struct PassVectors {
  const void *weight, *bias;  // [hidden] each
};

struct EncoderLayer {
  PassVectors attn_norm, mlp_norm;
  PassLinear qkv, out, fc1, fc2;
};

// The convolutions have three taps and strides 1 and 2. As linear maps their inputs are three neighbouring rows, which
// lie side by side in memory: taps outermost, then channels.
struct EncoderWeights {
  DType dtype;
  int64_t num_heads;
  float eps;
  int64_t leading;  // zero rows in front of a segment, of two in all: 1, or 2 for causal convolutions
  PassLinear conv1, conv2;
  const void* positions;  // [max_positions, hidden]
  std::vector<EncoderLayer> layers;
  PassVectors final_norm;  // or null: none

  int64_t hidden() const { return conv2.n; }
  int64_t num_mels() const { return conv1.k / 3; }
};

struct EncoderInput {
  int64_t num_segments, frames;  // even
  int64_t wanted;                // rows of each segment, of the first ones; frames / 2 in all
  int64_t block;                 // of EncoderAttentionArgs
  const void* mels;              // [num_segments, frames + 2, num_mels], `leading` rows of zeros before, the rest behind
  const int64_t* lengths;        // [num_segments], read if block > 0
  void* out;                     // [num_segments, wanted, hidden]
};

class EncoderPass {
 public:
  explicit EncoderPass(EncoderWeights weights);
  // One pass at a time: a second caller waits.
  void run(const EncoderInput& input);

 private:
  struct Thread;
  // What the convolutions see of a segment.
  struct Sound {
    const void* mels;  // as EncoderInput's
    int64_t frames;
  };
  Sound sound_of(const EncoderInput& in);
  void reserve(const EncoderInput& in);

  const EncoderWeights m_;
  std::mutex busy_;
  Aligned<char> mels_, frames_, x_, y_, branch_, qkv_, hidden_;
  PassOperand rows_, wide_;
  PassCounters counters_;
};

}  // namespace antiphon
