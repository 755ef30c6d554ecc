// Making compact weights (linear_kernels.h says what they are) of bfloat16 ones.
#pragma once

#include <cstdint>

#include "bf16.h"

namespace antiphon {

// Fills the table and the row starts of `codes`, kCompactTableWords + rows + 1 words, and returns the number of escapes,
// which come behind them.
int64_t compact_count(const bf16* weight, int64_t rows, int64_t k, int32_t* codes);

// Fills the escapes and out [rows, k * 3 / 2]; k is a multiple of kCompactGroup.
void compact_pack(const bf16* weight, int64_t rows, int64_t k, int32_t* codes, uint8_t* out);

}  // namespace antiphon
