// The products of wide linear maps in vectors, of either dtype, that the instruction set is best at.
#pragma once

#include "linear_wide_vector.h"
#if ANTIPHON_ADDS_BESIDE_PRODUCTS
#include "linear_wide_pairs.h"
#endif

namespace antiphon::ANTIPHON_ISA {

#if ANTIPHON_ADDS_BESIDE_PRODUCTS
using FloatProducts = PairProducts;
#else
using FloatProducts = VectorProducts<float>;
#endif
using HalfProducts = VectorProducts<bf16>;

}  // namespace antiphon::ANTIPHON_ISA
