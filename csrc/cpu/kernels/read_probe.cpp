// Sum of a buffer, read once from front to back: what the memory can deliver to this pool's threads. The benchmarks'
// yardstick, compiled with the same flags as the kernels that are measured against it, and like them it fetches ahead.
#include "kernels.h"
#include "simd.h"

namespace antiphon::ANTIPHON_ISA {

void read_probe(const ReadProbeArgs& a, int index, int count) {
  const Range range = partition(a.size, 64, index, count);
  uint64_t sum[64] = {};
  int64_t i = range.begin;
  for (; i + 64 <= range.end; i += 64) {
    for (int j = 0; j < 64; j += 8) prefetch(a.data + i + 256 + j);
    for (int j = 0; j < 64; ++j) sum[j] += a.data[i + j];
  }
  for (; i < range.end; ++i) sum[0] += a.data[i];
  for (int j = 1; j < 64; ++j) sum[0] += sum[j];
  a.sums[index] = sum[0];
}

}  // namespace antiphon::ANTIPHON_ISA
