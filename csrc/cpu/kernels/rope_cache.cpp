// Half-split rotary on q and k of packed qkv rows; q goes to `q`, k and v to their slots of the paged cache.
// (a, b) = halves of a head: (a cos - b sin, b cos + a sin) in float32, one rounding. Threads own (row, head) units.
#include "kernels.h"
#include "simd.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

template <class T>
void rotate(const T* x, const float* cos, const float* sin, T* out, int64_t half) {
  for_vectors(half, [&](int64_t i, int64_t n) {
    const vf a = load_upto(x + i, n), b = load_upto(x + half + i, n);
    const vf c = load_upto(cos + i, n), s = load_upto(sin + i, n);
    store_upto(out + i, sub(mul(a, c), mul(b, s)), n);
    store_upto(out + half + i, add(mul(b, c), mul(a, s)), n);
  });
}

template <class T>
void run(const RopeCacheArgs& a, int index, int count) {
  const int64_t heads = a.num_heads + 2 * a.num_kv_heads, dim = a.head_dim, half = dim / 2;
  const Range range = partition(a.num_rows * heads, 1, index, count);
  for (int64_t unit = range.begin; unit < range.end; ++unit) {
    const int64_t t = unit / heads, h = unit % heads, kv = h - a.num_heads;
    const T* x = static_cast<const T*>(a.qkv) + unit * dim;
    const float* cos = a.cos + a.positions[t] * half;
    const float* sin = a.sin + a.positions[t] * half;
    const int64_t slot = a.slots[t] * a.num_kv_heads * dim;
    if (kv < 0) rotate(x, cos, sin, static_cast<T*>(a.q) + (t * a.num_heads + h) * dim, half);
    else if (kv < a.num_kv_heads) rotate(x, cos, sin, static_cast<T*>(a.k_cache) + slot + kv * dim, half);
    else std::memcpy(static_cast<T*>(a.v_cache) + slot + (kv - a.num_kv_heads) * dim, x, dim * sizeof(T));
  }
}

}  // namespace

void rope_cache(const RopeCacheArgs& a, int index, int count) {
  a.dtype == DType::f32 ? run<float>(a, index, count) : run<bf16>(a, index, count);
}

}  // namespace antiphon::ANTIPHON_ISA
