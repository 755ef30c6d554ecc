// The order in which kernels that are bound by reading W walk its rows.
//
// The processor's prefetcher follows one stream per page and takes some lines to find it. Rows read side by side are
// therefore not neighbours but lie two pages or more apart: a "run" of rows is read by one lane from its beginning to its
// end while the other lanes read theirs, one row of every run in a pass. So many streams, never broken off, are what
// reaches the memory's bandwidth.
#pragma once

#include "simd.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int64_t kRunBytes = 8192;  // at least: 4096 is 1.02 to 1.06 times slower, 32768 0.93 to 1.05 by format and width

// Rows of a run for `lanes` of them; 1 where fewer than that many rows are left.
inline int64_t rows_per_run(int64_t row_bytes, int64_t lanes, int64_t rows) {
  const int64_t run = (kRunBytes + row_bytes - 1) / row_bytes;
  return lanes * run <= rows ? run : 1;
}

// Rows that threads take at a time: with tiles a run for each of 32 lanes. Vectors read rows one behind the other, so few
// are enough, and threads end together.
#if defined(__AMX_TILE__)
inline int64_t unit_rows(int64_t row_bytes) { return 32 * ((kRunBytes + row_bytes - 1) / row_bytes); }
#else
inline int64_t unit_rows(int64_t) { return 32; }
#endif

// Fetches what `kLanes` runs from `first` on need next, when byte `at` of each is being read; at the end, the beginning of
// the runs after them.
template <int64_t kLanes, int64_t kAheadBytes>
inline void prefetch_runs(const void* first, int64_t run_bytes, int64_t at) {
  const int64_t ahead = at + kAheadBytes;
  const char* p = static_cast<const char*>(first) + (ahead < run_bytes ? ahead : ahead + (kLanes - 1) * run_bytes);
  for (int64_t r = 0; r < kLanes; ++r) prefetch(p + r * run_bytes);
}

}  // namespace antiphon::ANTIPHON_ISA
