// Decode attention: sequences with one query row, over paged keys and values; other sequences are left alone.
//
// A unit is (sequence, kv head): all its query heads share each key and value that is read. Scores of the whole context
// go to scratch, then max, exp and sum, then the weighted sum of values in the order of positions; float32 throughout.
// A unit belongs to one thread, so a row depends on its own sequence only.
#include "kernels.h"
#include "simd.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

constexpr int64_t kMaxGroup = 8;  // query heads per pass

template <class T>
struct Unit {
  const T* q;            // [group, head_dim]
  const T* k;            // this kv head inside page 0
  const T* v;
  const int32_t* pages;
  T* out;                // [group, head_dim]
  int64_t length, group;
};

template <class T>
const T* entry(const PagedAttentionArgs& a, const T* base, const int32_t* pages, int64_t position) {
  const int64_t slot = static_cast<int64_t>(pages[position / a.page_size]) * a.page_size + position % a.page_size;
  return base + slot * a.num_kv_heads * a.head_dim;
}

template <class T>
float dot(const T* x, const T* y, int64_t n) {
  using D = Dot<T>;
  vf sum = set1(0.0f);
  int64_t i = 0;
  for (; i + D::width <= n; i += D::width) sum = D::step(sum, D::load(y + i), D::load(x + i));
  if (i < n) sum = D::step(sum, D::load_n(y + i, n - i), D::load_n(x + i, n - i));
  return hsum(sum);
}

// scores [group][length] → exp(score - max) in place; returns 1 / sum per head in `norms`.
void softmax(float* scores, int64_t length, int64_t group, float* norms) {
  for (int64_t g = 0; g < group; ++g) {
    float* s = scores + g * length;
    vf highest = set1(s[0]), total = set1(0.0f);
    int64_t whole = length / VF * VF;
    for (int64_t i = 0; i < whole; i += VF) highest = max(highest, load(s + i));
    float top = hmax(highest), rest = 0.0f;
    for (int64_t i = whole; i < length; ++i) top = s[i] > top ? s[i] : top;
    for (int64_t i = 0; i < whole; i += VF) {
      const vf e = exp(sub(load(s + i), set1(top)));
      store(s + i, e);
      total = add(total, e);
    }
    for (int64_t i = whole; i < length; ++i) {
      float lanes[VF] = {s[i]};
      store(lanes, exp(sub(load(lanes), set1(top))));
      s[i] = lanes[0];
      rest += s[i];
    }
    norms[g] = 1.0f / (hsum(total) + rest);
  }
}

// One vector of every head's output: sum over positions of weight * value.
template <class T, int G>
void weighted_values(const PagedAttentionArgs& a, const Unit<T>& u, const float* weights, const float* norms,
                     int64_t column, int64_t n) {
  vf sum[G];
  for (int g = 0; g < G; ++g) sum[g] = set1(0.0f);
  for (int64_t p = 0; p < u.length; ++p) {
    const vf value = load_upto(entry(a, u.v, u.pages, p) + column, n);
    for (int g = 0; g < G; ++g) sum[g] = fmadd(set1(weights[g * u.length + p]), value, sum[g]);
  }
  for (int g = 0; g < G; ++g) store_upto(u.out + g * a.head_dim + column, mul(sum[g], set1(norms[g])), n);
}

template <class T>
void values(const PagedAttentionArgs& a, const Unit<T>& u, const float* w, const float* norms, int64_t i, int64_t n) {
  switch (u.group) {
    case 1: return weighted_values<T, 1>(a, u, w, norms, i, n);
    case 2: return weighted_values<T, 2>(a, u, w, norms, i, n);
    case 3: return weighted_values<T, 3>(a, u, w, norms, i, n);
    case 4: return weighted_values<T, 4>(a, u, w, norms, i, n);
    case 5: return weighted_values<T, 5>(a, u, w, norms, i, n);
    case 6: return weighted_values<T, 6>(a, u, w, norms, i, n);
    case 7: return weighted_values<T, 7>(a, u, w, norms, i, n);
    default: return weighted_values<T, 8>(a, u, w, norms, i, n);
  }
}

template <class T>
void attend(const PagedAttentionArgs& a, const Unit<T>& u) {
  float norms[kMaxGroup];
  float* scores = static_cast<float*>(scratch(u.group * u.length * static_cast<int64_t>(sizeof(float))));
  for (int64_t p = 0; p < u.length; ++p) {
    const T* key = entry(a, u.k, u.pages, p);
    for (int64_t g = 0; g < u.group; ++g)
      scores[g * u.length + p] = a.scale * dot(u.q + g * a.head_dim, key, a.head_dim);
  }
  softmax(scores, u.length, u.group, norms);
  for_vectors(a.head_dim, [&](int64_t i, int64_t n) { values(a, u, scores, norms, i, n); });
}

template <class T>
void run(const PagedAttentionArgs& a, int index, int count) {
  const int64_t group = a.num_heads / a.num_kv_heads, dim = a.head_dim;
  const Range range = partition(a.num_seqs * a.num_kv_heads, 1, index, count);
  for (int64_t unit = range.begin; unit < range.end; ++unit) {
    const int64_t s = unit / a.num_kv_heads, h = unit % a.num_kv_heads;
    if (a.cu_seqlens_q[s + 1] - a.cu_seqlens_q[s] != 1) continue;
    const int64_t head = (a.cu_seqlens_q[s] * a.num_kv_heads + h) * group;
    for (int64_t g = 0; g < group; g += kMaxGroup) {
      const int64_t at = (head + g) * dim;
      attend(a, Unit<T>{static_cast<const T*>(a.q) + at, static_cast<const T*>(a.k_cache) + h * dim,
                        static_cast<const T*>(a.v_cache) + h * dim, a.block_tables + s * a.max_pages,
                        static_cast<T*>(a.out) + at, a.seq_lens[s], min64(kMaxGroup, group - g)});
    }
  }
}

}  // namespace

void paged_attention(const PagedAttentionArgs& a, int index, int count) {
  a.dtype == DType::f32 ? run<float>(a, index, count) : run<bf16>(a, index, count);
}

}  // namespace antiphon::ANTIPHON_ISA
