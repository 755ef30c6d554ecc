// The fused input of the language model, every sum and product rounded as memory would: table[audio] + table[text], where a
// row has a feature (table[audio] + feature) sqrt(2) + table[text]. Reference behaviour, section 8.
#include "kernels.h"
#include "simd.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

constexpr float kRootOfTwo = 1.41421356f;

template <class T>
void run(const DualEmbedArgs& a, int index, int count) {
  const Range range = partition(a.num_rows, 1, index, count);
  for (int64_t t = range.begin; t < range.end; ++t) {
    const T* audio = static_cast<const T*>(a.table) + a.audio_ids[t] * a.hidden;
    const T* text = static_cast<const T*>(a.table) + a.text_ids[t] * a.hidden;
    const int64_t row = a.features ? a.feature_rows[t] : -1;
    const T* feature = row < 0 ? nullptr : static_cast<const T*>(a.features) + row * a.hidden;
    T* out = static_cast<T*>(a.out) + t * a.hidden;
    for_vectors(a.hidden, [&](int64_t i, int64_t n) {
      vf x = load_upto(audio + i, n);
      if (feature) x = through<T>(mul(through<T>(add(x, load_upto(feature + i, n))), set1(kRootOfTwo)));
      store_upto(out + i, add(x, load_upto(text + i, n)), n);
    });
  }
}

}  // namespace

void dual_embed(const DualEmbedArgs& a, int index, int count) {
  a.dtype == DType::f32 ? run<float>(a, index, count) : run<bf16>(a, index, count);
}

}  // namespace antiphon::ANTIPHON_ISA
