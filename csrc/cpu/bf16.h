// bfloat16 as stored: the upper half of a float32.
#pragma once

#include <cstdint>
#include <cstring>

namespace antiphon {

struct bf16 {
  uint16_t bits;
};

enum class DType : int { f32 = 0, bf16 = 1 };

}  // namespace antiphon
