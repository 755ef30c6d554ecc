// Every row of a stream sees the stream's cached window, then all its current rows.
#include "attention.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

template <class T>
struct Stream {
  using Element = T;
  const T *q, *k, *v, *k_window, *v_window;  // of one head, rows `stride` apart
  T* out;
  int64_t cached, rows, keys, stride, head_dim;
  float scale;

  const T* query(int64_t i) const { return q + i * stride; }
  T* output(int64_t i) const { return out + i * stride; }
  int64_t end(int64_t) const { return keys; }
  const T* key(int64_t j) const { return j < cached ? k_window + j * stride : k + (j - cached) * stride; }
  const T* value(int64_t j) const { return j < cached ? v_window + j * stride : v + (j - cached) * stride; }
};

template <class T>
Stream<T> stream(const FlowAttentionArgs& a, int64_t s, int64_t head) {
  const int64_t stride = a.plan.heads * a.plan.head_dim, first = a.cu_seqlens[s] * stride + head * a.plan.head_dim;
  const int64_t slot = a.slots[s] * a.window * stride + head * a.plan.head_dim;
  const int64_t cached = a.cache_lens[s], rows = a.cu_seqlens[s + 1] - a.cu_seqlens[s];
  return {static_cast<const T*>(a.q) + first,
          static_cast<const T*>(a.k) + first,
          static_cast<const T*>(a.v) + first,
          static_cast<const T*>(a.k_cache) + slot,
          static_cast<const T*>(a.v_cache) + slot,
          static_cast<T*>(a.out) + first,
          cached, rows, cached + rows, stride, a.plan.head_dim, a.scale};
}

template <class T>
void run(const FlowAttentionArgs& a, int count) {
  attend_all<T>(a.plan, count, [&](int64_t s, int64_t head) { return stream<T>(a, s, head); });
}

}  // namespace

void flow_attention(const FlowAttentionArgs& a, int, int count) {
  a.dtype == DType::f32 ? run<float>(a, count) : run<bf16>(a, count);
}

}  // namespace antiphon::ANTIPHON_ISA
