// Everything that thread_pool.h offers, at once, for ThreadSanitizer: jobs of two phases from two callers, a job inside a
// job, scratch memory, and a pool that changes its size. Exits with 1 if a number comes out wrong.
//
// WITHOUT_BARRIER leaves the barrier between the phases out, so that a race is there to be found.
#include "thread_pool.h"

#include <cstdio>
#include <thread>
#include <vector>

namespace {

constexpr int64_t kRows = 64, kGrain = 4;

// Phase one writes rows, phase two reads all of them; true if each thread saw the rows of all others.
bool two_phases(int64_t salt) {
  std::vector<int64_t> rows(kRows), sums(256);
  int threads = 0;
  antiphon::parallel([&](int index, int count) {
    if (index == 0) threads = count;
    const antiphon::Range range = antiphon::partition(kRows, kGrain, index, count);
    auto* own = static_cast<int64_t*>(antiphon::scratch(kRows * 8));
    for (int64_t i = range.begin; i < range.end; ++i) own[i] = i * salt;
    antiphon::parallel([&](int inner, int alone) {  // a job inside a job runs on this thread
      if (inner == 0 && alone == 1)
        for (int64_t i = range.begin; i < range.end; ++i) rows[i] = own[i];
    });
#ifndef WITHOUT_BARRIER
    antiphon::job_barrier(count);
#endif
    for (int64_t i = 0; i < kRows; ++i) sums[index] += rows[i];
  });
  for (int i = 0; i < threads; ++i)
    if (sums[i] != salt * kRows * (kRows - 1) / 2) return false;
  return threads > 0;
}

}  // namespace

int main() {
  bool right = true;
  for (int count : {2, 3, 1, 4}) {
    antiphon::set_num_threads(count);
    bool others = true;
    std::thread second([&] {
      for (int64_t i = 1; i <= 200; ++i) others &= two_phases(i);
    });
    for (int64_t i = 1; i <= 200; ++i) {
      if (i == 100) antiphon::set_num_threads(count + 1);  // while the other one's jobs run
      right &= two_phases(-i);
    }
    second.join();
    right &= others;
  }
  if (!right) std::puts("a sum is wrong");
  return right ? 0 : 1;
}
