// Attention of the audio encoders: N segments of T keys; row i sees all T, or with a block the valid keys up to the end
// of its own block.
#include "attention.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

template <class T>
struct Segment {
  using Element = T;
  const T *q, *k, *v;  // of one head
  T* out;
  int64_t q_stride, k_stride, v_stride, out_stride, rows, keys, block, head_dim;
  float scale;

  const T* query(int64_t i) const { return q + i * q_stride; }
  T* output(int64_t i) const { return out + i * out_stride; }
  int64_t end(int64_t i) const { return block > 0 ? min64(keys, (i / block + 1) * block) : keys; }
  const T* key(int64_t j) const { return k + j * k_stride; }
  const T* value(int64_t j) const { return v + j * v_stride; }
};

template <class T>
Segment<T> segment(const EncoderAttentionArgs& a, int64_t s, int64_t head) {
  const auto of = [&](const StridedHeads& x) { return static_cast<const T*>(x.data) + s * x.segment + head * x.head; };
  const int64_t dim = a.plan.head_dim, width = a.plan.heads * dim;
  return {of(a.q), of(a.k), of(a.v), static_cast<T*>(a.out) + s * a.rows * width + head * dim,
          a.q.row, a.k.row, a.v.row, width,
          a.rows, a.block > 0 ? min64(a.lengths[s], a.keys) : a.keys, a.block, dim, a.scale};
}

template <class T>
void run(const EncoderAttentionArgs& a, int count) {
  attend_all<T>(a.plan, count, [&](int64_t s, int64_t head) { return segment<T>(a, s, head); });
}

}  // namespace

void encoder_attention(const EncoderAttentionArgs& a, int, int count) {
  a.dtype == DType::f32 ? run<float>(a, count) : run<bf16>(a, count);
}

}  // namespace antiphon::ANTIPHON_ISA
