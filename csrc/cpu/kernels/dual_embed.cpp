// x = round(table[audio] + table[text]): the fused input of a decode step (no features: they belong to prompts).
#include "kernels.h"
#include "simd.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

template <class T>
void run(const DualEmbedArgs& a, int index, int count) {
  const Range range = partition(a.num_rows, 1, index, count);
  for (int64_t t = range.begin; t < range.end; ++t) {
    const T* audio = static_cast<const T*>(a.table) + a.audio_ids[t] * a.hidden;
    const T* text = static_cast<const T*>(a.table) + a.text_ids[t] * a.hidden;
    T* out = static_cast<T*>(a.out) + t * a.hidden;
    for_vectors(a.hidden, [&](int64_t i, int64_t n) {
      store_upto(out + i, add(load_upto(audio + i, n), load_upto(text + i, n)), n);
    });
  }
}

}  // namespace

void dual_embed(const DualEmbedArgs& a, int index, int count) {
  a.dtype == DType::f32 ? run<float>(a, index, count) : run<bf16>(a, index, count);
}

}  // namespace antiphon::ANTIPHON_ISA
