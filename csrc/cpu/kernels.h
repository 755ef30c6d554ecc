// Declarations of every kernel, once per instruction set: namespace antiphon::<isa>.
#pragma once

#include <cstdint>

namespace antiphon {

#define ANTIPHON_DECLARE_KERNELS(isa)                                           \
  namespace isa {                                                               \
  uint64_t read_probe(const uint64_t* data, int64_t begin, int64_t end);        \
  }

ANTIPHON_DECLARE_KERNELS(scalar)
ANTIPHON_DECLARE_KERNELS(avx2)
ANTIPHON_DECLARE_KERNELS(avx512)
ANTIPHON_DECLARE_KERNELS(avx512bf16)

}  // namespace antiphon
