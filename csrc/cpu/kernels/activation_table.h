// What an activation makes of every bfloat16 number: looked up where it would be computed in vectors, with the same result.
//
// A network's activations have few of the 65536 arguments, so what is read of the table stays in the first-level cache.
// Sixteen look-ups take a third of the time of the operations that they replace.
#pragma once

#include "activations.h"
#include "kernels.h"

namespace antiphon::ANTIPHON_ISA {

class ActivationTable {
 public:
  template <class F>
  explicit ActivationTable(const F& f) {
    for (int64_t first = 0; first < kSize; first += kBatch * VF) {
      const auto y = f(batch<kBatch>([&](int j) { return arguments(first + j * VF); }));
      for (int j = 0; j < kBatch; ++j) store(results_ + first + j * VF, y.v[j]);
    }
  }

  // Of 16 numbers, in the lower halves of words.
  __m512i of(__m256i numbers) const { return _mm512_i32gather_epi32(_mm512_cvtepu16_epi32(numbers), results_, 2); }

 private:
  static constexpr int64_t kSize = 65536;

  static vf arguments(int64_t first) {
    bf16 numbers[VF];
    for (int64_t i = 0; i < VF; ++i) numbers[i].bits = static_cast<uint16_t>(first + i);
    return load(numbers);
  }

  bf16 results_[kSize + 1] = {};  // a word is read at the last one too
};

// The table of an activation that is one, made at its first use.
inline const ActivationTable& activation_table(Activation activation) {
  if (activation == Activation::gelu_exact) {
    static const ActivationTable exact([](auto x) { return gelu_exact<bf16>(x); });
    return exact;
  }
  static const ActivationTable tanh([](auto x) { return gelu_tanh<bf16>(x); });
  return tanh;
}

}  // namespace antiphon::ANTIPHON_ISA
