// Splits packed q | k | v rows; neighbouring pairs of q and k are rotated in float32, one rounding. Threads own rows.
#include "kernels.h"
#include "simd.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

// Of one position, each value twice: (cos, cos), (-sin, sin), so that x * cos + swapped(x) * sin rotates without
// shuffles.
void spread(const float* cos, const float* sin, int64_t half, float* cosines, float* sines) {
  for (int64_t i = 0; i < half; ++i) {
    cosines[2 * i] = cosines[2 * i + 1] = cos[i];
    sines[2 * i] = -sin[i];
    sines[2 * i + 1] = sin[i];
  }
}

template <class T>
void rotate_pairs(const T* x, const float* cosines, const float* sines, T* out, int64_t dim) {
  for_vectors(dim, [&](int64_t i, int64_t n) {
    const vf straight = mul(load_upto(x + i, n), load_upto(cosines + i, n));
    store_upto(out + i, add(straight, mul(load_swapped(x, i, n), load_upto(sines + i, n))), n);
  });
}

template <class T>
void run(const FlowRopeArgs& a, int index, int count) {
  const int64_t dim = a.head_dim, width = a.num_heads * dim;
  const Range range = partition(a.num_rows, 1, index, count);
  float* cosines = static_cast<float*>(scratch(2 * dim * 4));
  float* sines = cosines + dim;
  for (int64_t t = range.begin; t < range.end; ++t) {
    const T* qkv = static_cast<const T*>(a.qkv) + t * a.qkv_stride;
    spread(a.cos + a.positions[t] * (dim / 2), a.sin + a.positions[t] * (dim / 2), dim / 2, cosines, sines);
    for (int64_t i = 0; i < width; i += dim) {
      rotate_pairs(qkv + i, cosines, sines, static_cast<T*>(a.q) + t * width + i, dim);
      rotate_pairs(qkv + width + i, cosines, sines, static_cast<T*>(a.k) + t * width + i, dim);
    }
    std::memcpy(static_cast<T*>(a.v) + t * width, qkv + 2 * width, width * sizeof(T));
  }
}

}  // namespace

void flow_rope(const FlowRopeArgs& a, int index, int count) {
  a.dtype == DType::f32 ? run<float>(a, index, count) : run<bf16>(a, index, count);
}

}  // namespace antiphon::ANTIPHON_ISA
