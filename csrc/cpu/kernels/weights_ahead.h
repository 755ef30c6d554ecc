// Weights that will be needed next, fetched to the second-level cache between the products with those at hand.
#pragma once

#include "simd.h"

namespace antiphon::ANTIPHON_ISA {

// Rows of W, a few lines at a time.
struct WeightsAhead {
  const char* w = nullptr;
  int64_t stride = 0, row_bytes = 0, rows = 0;  // rows `stride` bytes apart
  int64_t lines = 0;                            // of 64 bytes, for every step of so many as there will be
  int64_t row = 0, at = 0;

  WeightsAhead() = default;
  WeightsAhead(const void* first, int64_t stride, int64_t row_bytes, int64_t rows, int64_t steps)
      : w(static_cast<const char*>(first)), stride(stride), row_bytes(row_bytes), rows(rows),
        lines((rows * row_bytes / 64 + steps - 1) / steps) {}

  void fetch() {
    for (int64_t i = 0; i < lines && row < rows; ++i) {
      __builtin_prefetch(w + row * stride + at, 0, 2);
      if ((at += 64) >= row_bytes) {
        at = 0;
        ++row;
      }
    }
  }
};

// Whole rows, for steps so long that a few of them do.
struct RowsAhead {
  const char* w = nullptr;
  int64_t stride = 0, row_bytes = 0, rows = 0;
  int64_t share = 0;  // rows of a step
  int64_t row = 0;

  RowsAhead() = default;
  RowsAhead(const void* first, int64_t stride, int64_t row_bytes, int64_t rows, int64_t steps)
      : w(static_cast<const char*>(first)), stride(stride), row_bytes(row_bytes), rows(rows),
        share((rows + steps - 1) / steps) {}

  void fetch() {
    for (const int64_t end = min64(row + share, rows); row < end; ++row)
      for (int64_t i = 0; i < row_bytes; i += 64) __builtin_prefetch(w + row * stride + i, 0, 2);
  }
};

// Memory without gaps, so many lines a step; for loops of few instructions.
struct LinesAhead {
  const char *p, *end;
  int64_t bytes;

  LinesAhead(const void* first, int64_t bytes, int64_t steps)
      : p(static_cast<const char*>(first)), end(p + bytes), bytes((bytes / 64 + steps - 1) / steps * 64) {}

  void fetch() {
    if (p >= end) return;
    for (const char* until = p + bytes; p < until; p += 64) prefetch(p);
  }
};

}  // namespace antiphon::ANTIPHON_ISA
