// Lines that results are about to be written to, asked for between the products that make them. Another core has mostly
// read or written them last, and a store that first has to ask for its line holds up those behind it.
#pragma once

#include "simd.h"

namespace antiphon::ANTIPHON_ISA {

// One line of every row, which come in blocks.
struct ResultsAhead {
  char* out = nullptr;
  int64_t stride = 0, block = 0;  // bytes between rows and between blocks of kBlockRows
  int64_t rows = 0, row = 0;
  int64_t lines = 0;              // for every step of so many as there will be

  static constexpr int64_t kBlockRows = 16;

  ResultsAhead() = default;
  ResultsAhead(void* out, int64_t stride, int64_t block, int64_t rows, int64_t steps)
      : out(static_cast<char*>(out)), stride(stride), block(block), rows(rows), lines((rows + steps - 1) / steps) {}

  void fetch() {
    for (const int64_t end = min64(row + lines, rows); row < end; ++row)
      __builtin_prefetch(out + row / kBlockRows * block + row % kBlockRows * stride, 1);
  }
};

}  // namespace antiphon::ANTIPHON_ISA
