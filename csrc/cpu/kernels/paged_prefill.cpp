// Paged attention of sequences with more than one row: row r of a sequence sees its keys up to its own position. The
// rows of all query heads that share a head of keys are one problem, so they share its packed keys.
#include "attention.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

template <class T>
struct Chunk {
  using Element = T;
  const T *q, *k, *v;  // of the first query head, and of the head of keys in page 0
  T* out;
  const int32_t* pages;
  int64_t rows, keys, group, first, q_stride, page_size, key_stride, head_dim;  // first: keys that row 0 sees
  float scale;

  int64_t place(int64_t i) const { return i / group * q_stride + i % group * head_dim; }
  const T* query(int64_t i) const { return q + place(i); }
  T* output(int64_t i) const { return out + place(i); }
  int64_t end(int64_t i) const { return first + i / group; }
  int64_t slot(int64_t j) const { return (pages[j / page_size] * page_size + j % page_size) * key_stride; }
  const T* key(int64_t j) const { return k + slot(j); }
  const T* value(int64_t j) const { return v + slot(j); }
};

template <class T>
Chunk<T> chunk(const PagedAttentionArgs& a, int64_t s, int64_t head) {
  const int64_t dim = a.head_dim, group = a.num_heads / a.num_kv_heads, start = a.cu_seqlens_q[s];
  const int64_t rows = a.cu_seqlens_q[s + 1] - start, at = (start * a.num_heads + head * group) * dim;
  return {static_cast<const T*>(a.q) + at,
          static_cast<const T*>(a.k_cache) + head * dim,
          static_cast<const T*>(a.v_cache) + head * dim,
          static_cast<T*>(a.out) + at,
          a.block_tables + s * a.max_pages,
          rows * group, a.seq_lens[s], group, a.seq_lens[s] - rows + 1, a.num_heads * dim, a.page_size,
          a.num_kv_heads * dim, dim, a.scale};
}

template <class T>
void run(const PagedPrefillArgs& a, int count) {
  attend_all<T>(a.plan, count, [&](int64_t s, int64_t head) { return chunk<T>(a.batch, s, head); });
}

}  // namespace

void paged_prefill(const PagedPrefillArgs& a, int, int count) {
  a.batch.dtype == DType::f32 ? run<float>(a, count) : run<bf16>(a, count);
}

}  // namespace antiphon::ANTIPHON_ISA
