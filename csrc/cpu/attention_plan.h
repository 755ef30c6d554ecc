// The AttentionPlan of ragged sequences, and the memory behind it.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels.h"

namespace antiphon {

// Sequences are added one by one; the plan is valid as long as this object and the memory of its packed keys.
class AttentionUnits {
 public:
  AttentionUnits(int64_t heads, int64_t head_dim) : heads_(heads), head_dim_(head_dim) {}

  // A sequence of so many query rows of a head, which see at most so many keys; none of either if there are no rows.
  // Of the keys before `packed`, whole steps are not packed again: the plan's memory holds them, from another plan of
  // the same keys.
  void add(int64_t rows, int64_t keys, int64_t packed = 0) {
    const int64_t blocks = rows > 0 ? ceil_div(keys, AttentionPlan::kBlockKeys) : 0;
    const int64_t steps = blocks * (AttentionPlan::kBlockKeys / AttentionPlan::kKeyStep);
    rows_ += rows;
    first_chunk_.push_back(first_chunk_.back() + ceil_div(rows, AttentionPlan::kChunkRows));
    first_block_.push_back(first_block_.back() + blocks);
    first_step_.push_back(first_step_.back() + steps - std::min(steps, packed / AttentionPlan::kKeyStep));
  }

  // The sequences of paged attention: those that are prompts, so with `group` query heads a head of keys; the others have
  // no rows here.
  void add_prompts(const int32_t* first_rows, const int32_t* seq_lens, int64_t num_sequences, int64_t group) {
    for (int64_t s = 0; s < num_sequences; ++s) {
      const int64_t rows = first_rows[s + 1] - first_rows[s];
      add(rows > 1 ? rows * group : 0, seq_lens[s]);
    }
  }

  int64_t rows() const { return rows_; }
  int64_t steps() const { return first_step_.back(); }

  // Memory of the packed keys and values, dims padded to at most a multiple of 32.
  int64_t packed_bytes(DType dtype = DType::f32) const {
    const int64_t elements = 2 * AttentionPlan::kBlockKeys * ceil_div(head_dim_, 32) * 32;
    const int64_t block = elements * AttentionPlan::stored_bytes(dtype);
    return first_block_.back() * heads_ * block;
  }

  // In the thread's scratch memory, until its next shared_scratch().
  AttentionPlan plan() { return plan_in(shared_scratch(packed_bytes())); }
  // In memory of the caller's, packed_bytes() of it, which plans of the same keys may share.
  AttentionPlan plan_in(void* workspace) {
    next_[0] = next_[1] = 0;
    return {static_cast<int64_t>(first_block_.size()) - 1, heads_, head_dim_, first_block_.data(), first_step_.data(),
            first_chunk_.data(), workspace, next_};
  }

 private:
  static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

  int64_t heads_, head_dim_, rows_ = 0;
  std::vector<int64_t> first_block_{0}, first_step_{0}, first_chunk_{0};
  std::atomic<int64_t> next_[2];
};

}  // namespace antiphon
