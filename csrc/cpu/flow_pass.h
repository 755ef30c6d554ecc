// Evaluations of the flow-matching DiT over a ragged batch of streams, each a single job: weights are bound once, buffers
// are kept, then one evaluation, or several steps of the solver, is one call. It runs the same kernels as the operators
// do, row by row in the same order, so its results are theirs, bit for bit. Reference behaviour, section 11.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "network_pass.h"

namespace antiphon {

struct FlowLayer {
  PassLinear modulation;  // 6 hidden outputs: shift, scale, gate of attention, then of the MLP
  PassLinear qkv, proj, fc1, fc2;
};

struct FlowWeights {
  DType dtype;
  int64_t num_heads;
  float eps;
  const float *cos, *sin;  // [max_positions, head_dim / 2]
  PassLinear input;
  std::vector<FlowLayer> layers;
  PassLinear final_modulation, output;  // final_modulation: shift, scale

  int64_t hidden() const { return input.n; }
};

struct FlowInput {
  int64_t num_rows, frames_per_token, num_streams, window, layer_stride;  // frames_per_token divides 16
  const void* x;              // [num_rows, num_mels]
  const void* modulation;     // [evaluations, num_rows / frames_per_token, hidden]
  const int64_t* positions;   // [num_rows]
  const int32_t* cu_seqlens;  // [num_streams + 1]
  const int64_t* slots;       // [num_streams]
  const int32_t* cache_lens;  // [num_streams]
  void *keys, *values;        // [slots, window, heads, head_dim] of a layer, layers layer_stride elements apart
  void* out;                  // [num_rows, num_mels], or null: the pass whose product is keys and values
  const float* widths;        // [num_steps] of Euler steps from x to `out`; none: `out` is the velocity at x
  int64_t num_steps;
  const int64_t *kept, *places;  // [num_kept]: of rows `kept`, to rows `places` of the flattened window; read if no out
  int64_t num_kept;

  int64_t evaluations() const { return std::max(int64_t{1}, num_steps); }
};

class FlowPass {
 public:
  // With fewer multiplications a layer than alone_work the calling thread does all: waking others costs more. Over
  // several evaluations the window's keys and values stay packed, in at most packed_limit bytes; where that is too
  // little, each evaluation packs them again.
  FlowPass(FlowWeights weights, int64_t alone_work, int64_t packed_limit);
  // One call at a time: a second caller waits. Every layer reads the window as it was before.
  void run(const FlowInput& input);
  // Memory that is held for packed keys and values.
  int64_t packed_bytes() const { return packed_.size(); }

 private:
  struct Thread;
  void reserve(int64_t rows, int64_t tokens, int64_t modulations);  // tokens of all evaluations

  const FlowWeights m_;
  const int64_t alone_work_, packed_limit_;
  std::mutex busy_;
  Aligned<char> x_, y_, branch_, qkv_, q_, k_, v_, hidden_;
  // Of each layer, then of the final one, [evaluations, tokens, vectors, hidden]; of one evaluation by turns in three.
  std::vector<Aligned<char>> modulations_;
  // Of each layer, keys and values as attention reads them: of the window from the first evaluation of a call to its
  // last, of the current rows within one. Nothing outlives the call. Unused in a call of one evaluation.
  Aligned<char> packed_;
  PassOperand rows_, wide_, tokens_;
  PassCounters counters_;
};

}  // namespace antiphon
