// Which rows of W a thread of a decode step takes.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace antiphon::ANTIPHON_ISA {

// One range; or, with counters, a thread's own rows a unit at a time and then units that slower threads have left. Who
// computes a row does not change its result.
class RowUnits {
 public:
  explicit RowUnits(Range range) : range_(range) {}
  RowUnits(std::atomic<int64_t>* next, int64_t rows, int64_t unit, int index, int count)
      : next_(next), rows_(rows), unit_(unit), index_(index), count_(count) {}

  // The next range; false where there is none.
  bool take(Range& range) {
    if (!next_) {
      range = range_;
      range_.end = range_.begin;
      return range.begin < range.end;
    }
    for (; passed_ < count_; ++passed_) {
      const int thread = (index_ + passed_) % count_;
      const Range all = partition(rows_, unit_, thread, count_);
      const int64_t begin = all.begin + next_[thread * kClaimStride].fetch_add(unit_, std::memory_order_relaxed);
      if (begin >= all.end) continue;
      range = {begin, min64(begin + unit_, all.end)};
      return true;
    }
    return false;
  }

 private:
  Range range_{};
  std::atomic<int64_t>* next_ = nullptr;
  int64_t rows_ = 0, unit_ = 0;
  int index_ = 0, count_ = 0, passed_ = 0;
};

constexpr int64_t kLeastRows = 32, kLeastUnits = 2;  // of a unit; of a thread

// f(branch, units) for each branch that has rows of x: a share of both together, or with counters units of each, of
// `whole` rows where threads would have enough of them.
template <class Args, class F>
inline void for_branches(const Args& a, std::atomic<int64_t>* next, int64_t whole, int index, int count, const F& f) {
  const bool text = a.split > 0, audio = a.split < a.num_rows;
  if (next) {
    const int64_t unit = a.n < kLeastUnits * count * whole ? kLeastRows : whole;
    if (text) f(0, RowUnits(next, a.n, unit, index, count));
    if (audio) f(1, RowUnits(next + count * kClaimStride, a.n, unit, index, count));
    return;
  }
  const Range range = partition((text + audio) * a.n, kLeastRows, index, count);
  if (text && range.begin < a.n) f(0, RowUnits({range.begin, min64(range.end, a.n)}));
  const int64_t shift = text ? a.n : 0;
  if (audio && range.end > shift) f(1, RowUnits({max64(range.begin - shift, 0), range.end - shift}));
}

}  // namespace antiphon::ANTIPHON_ISA
