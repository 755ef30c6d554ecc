// The AttentionPlan of ragged sequences, and the memory behind it.
#pragma once

#include <vector>

#include "kernels.h"

namespace antiphon {

// Sequences are added one by one; the plan is valid as long as this object and until the thread's next
// shared_scratch().
class AttentionUnits {
 public:
  AttentionUnits(int64_t heads, int64_t head_dim) : heads_(heads), head_dim_(head_dim) {}

  // A sequence of so many query rows of a head, which see at most so many keys; none of either if there are no rows.
  void add(int64_t rows, int64_t keys) {
    rows_ += rows;
    first_chunk_.push_back(first_chunk_.back() + ceil_div(rows, AttentionPlan::kChunkRows));
    first_block_.push_back(first_block_.back() + (rows > 0 ? ceil_div(keys, AttentionPlan::kBlockKeys) : 0));
  }

  int64_t rows() const { return rows_; }

  AttentionPlan plan() {
    // Keys and values, dims padded to at most a multiple of 32.
    const int64_t block = 2 * AttentionPlan::kBlockKeys * ceil_div(head_dim_, 32) * 32 * AttentionPlan::kStoredBytes;
    return plan_in(shared_scratch(first_block_.back() * heads_ * block));
  }
  // In the memory of another plan, of the same keys.
  AttentionPlan plan_in(void* workspace) {
    next_[0] = next_[1] = 0;
    return {static_cast<int64_t>(first_block_.size()) - 1, heads_, head_dim_, first_block_.data(), first_chunk_.data(),
            workspace, next_};
  }

 private:
  static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

  int64_t heads_, head_dim_, rows_ = 0;
  std::vector<int64_t> first_block_{0}, first_chunk_{0};
  std::atomic<int64_t> next_[2];
};

}  // namespace antiphon
