// Rows side by side in a vector. A word is 4 bytes of a row: a float or two neighbouring bfloat16, which a step of Dot
// multiplies at once; a block is VF rows, word by word.
#pragma once

#include "simd.h"

namespace antiphon::ANTIPHON_ISA {

template <class T>
constexpr int64_t kWordColumns = Dot<T>::width / VF;

// [words][VF][kWordColumns] of at most VF rows, row(i) the i-th one's k elements, words `stride` elements apart; zero past the
// rows and from k to `end`, whole words.
template <class T, class Row>
inline void pack_words(const Row& row, int64_t rows, int64_t k, int64_t end, T* out, int64_t stride = Dot<T>::width) {
  constexpr int64_t kWidth = Dot<T>::width;
  for (int64_t i = 0; i < end; i += kWidth) {
    vf words[VF];
    if (rows == VF && i + kWidth <= k) {
      for (int64_t r = 0; r < VF; ++r) words[r] = load_words(row(r) + i);
    } else {
      T part[VF][kWidth] = {};
      for (int64_t r = 0; r < rows; ++r)
        if (i < k) std::memcpy(part[r], row(r) + i, min64(kWidth, k - i) * sizeof(T));
      for (int64_t r = 0; r < VF; ++r) words[r] = load_words(part[r]);
    }
    transpose(words);
    for (int64_t j = 0; j < min64(VF, (end - i) / kWordColumns<T>); ++j)
      store_words(out + (i / kWordColumns<T> + j) * stride, words[j]);
  }
}

}  // namespace antiphon::ANTIPHON_ISA
