// Counters from which threads claim units of work, one for each phase of a pass over a network.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace antiphon {

class PassCounters {
 public:
  explicit PassCounters(int64_t size) : size_(size), counters_(new std::atomic<int64_t>[size]) {}
  // All zero.
  std::atomic<int64_t>* restart() {
    for (int64_t i = 0; i < size_; ++i) counters_[i].store(0, std::memory_order_relaxed);
    return counters_.get();
  }

 private:
  int64_t size_;
  std::unique_ptr<std::atomic<int64_t>[]> counters_;
};

}  // namespace antiphon
