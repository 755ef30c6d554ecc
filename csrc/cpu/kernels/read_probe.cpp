// Reads memory once: what the bandwidth of the machine is measured with.
//
// Every thread reads its share as 16 streams side by side, 256 bytes of each in turn: one stream alone does not reach the
// memory's bandwidth (row_runs.h).
#include "kernels.h"
#include "simd.h"

namespace antiphon::ANTIPHON_ISA {

void read_probe(const ReadProbeArgs& a, int index, int count) {
  constexpr int64_t kStreams = 16, kWords = 32;
  const Range range = partition(a.size, 64, index, count);
  const int64_t length = (range.end - range.begin) / kStreams / kWords * kWords;
  uint64_t sum[kWords] = {};
  for (int64_t i = 0; i < length; i += kWords)
    for (int64_t s = 0; s < kStreams; ++s) {
      const uint64_t* p = a.data + range.begin + s * length + i;
      for (int64_t j = 0; j < kWords; j += 8) prefetch(p + 128 + j);
      for (int64_t j = 0; j < kWords; ++j) sum[j] += p[j];
    }
  for (int64_t i = range.begin + kStreams * length; i < range.end; ++i) sum[0] += a.data[i];
  for (int64_t j = 1; j < kWords; ++j) sum[0] += sum[j];
  a.sums[index] = sum[0];
}

}  // namespace antiphon::ANTIPHON_ISA
