// Sum of a buffer, read once from front to back: what the machine's memory can deliver to this pool's threads.
// The benchmark's yardstick, built with the same flags as the kernels that are measured against it.
#include "kernels.h"

namespace antiphon::ANTIPHON_ISA {

uint64_t read_probe(const uint64_t* data, int64_t begin, int64_t end) {
  uint64_t sum[8] = {};
  int64_t i = begin;
  for (; i + 8 <= end; i += 8)
    for (int j = 0; j < 8; ++j) sum[j] += data[i + j];
  for (; i < end; ++i) sum[0] += data[i];
  return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

}  // namespace antiphon::ANTIPHON_ISA
