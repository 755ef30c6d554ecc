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

// Calls f(position, row, n, next) for each page: n rows from `row` on belong to the positions from `position` on; next:
// the page after, to be fetched meanwhile, or `then`.
template <class T, class F>
void for_pages(const PagedAttentionArgs& a, const Unit<T>& u, const T* base, const T* then, const F& f) {
  const int64_t page_elements = a.page_size * a.num_kv_heads * a.head_dim;
  for (int64_t p = 0; p < u.length; p += a.page_size) {
    const int32_t* page = u.pages + p / a.page_size;
    const T* next = p + a.page_size < u.length ? base + page[1] * page_elements : then;
    f(p, base + *page * page_elements, min64(a.page_size, u.length - p), next);
  }
}

template <class T>
void prefetch_row(const T* row, int64_t n) {
  for (int64_t i = 0; i < n; i += 64 / static_cast<int64_t>(sizeof(T))) prefetch(row + i);
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

// The same for VF rows y that lie `stride` apart, one per lane. Few at a time: for more, their addresses do not stay in
// registers.
template <class T>
vf dots(const T* x, const T* y, int64_t stride, int64_t n) {
  using D = Dot<T>;
  constexpr int kRows = VF < 4 ? VF : 4;
  vf sums[VF];
  for (int first = 0; first < VF; first += kRows, y += kRows * stride) {
    for (int r = 0; r < kRows; ++r) sums[first + r] = set1(0.0f);
    int64_t i = 0;
    for (; i + D::width <= n; i += D::width)
      for (int r = 0; r < kRows; ++r)
        sums[first + r] = D::step(sums[first + r], D::load(y + r * stride + i), D::load(x + i));
    for (int r = 0; r < kRows && i < n; ++r)
      sums[first + r] = D::step(sums[first + r], D::load_n(y + r * stride + i, n - i), D::load_n(x + i, n - i));
  }
  return hsums(sums);
}

// scores[group][length] of the whole context.
template <class T>
void score(const PagedAttentionArgs& a, const Unit<T>& u, float* scores) {
  const int64_t dim = a.head_dim, stride = a.num_kv_heads * dim;
  for_pages(a, u, u.k, u.v + *u.pages * a.page_size * stride, [&](int64_t p, const T* key, int64_t n, const T* next) {
    int64_t i = 0;
    for (; i + VF <= n; i += VF)
      for (int64_t g = 0; g < u.group; ++g) {
        for (int64_t r = g * VF / u.group; r < (g + 1) * VF / u.group; ++r) prefetch_row(next + (i + r) * stride, dim);
        store(scores + g * u.length + p + i, mul(set1(a.scale), dots(u.q + g * dim, key + i * stride, stride, dim)));
      }
    for (; i < n; ++i) {
      prefetch_row(next + i * stride, dim);
      for (int64_t g = 0; g < u.group; ++g)
        scores[g * u.length + p + i] = a.scale * dot(u.q + g * dim, key + i * stride, dim);
    }
  });
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

// C vectors of every head's output, n lanes where it is one: sum over positions of weight * value.
template <class T, int G, int C>
void weighted_values(const PagedAttentionArgs& a, const Unit<T>& u, const float* weights, const float* norms,
                     int64_t column, int64_t n) {
  const int64_t stride = a.num_kv_heads * a.head_dim;
  vf sums[G][C];
  for (auto& head : sums)
    for (vf& sum : head) sum = set1(0.0f);
  for_pages(a, u, u.v + column, u.v + column, [&](int64_t p, const T* row, int64_t rows, const T* next) {
    for (int64_t i = 0; i < rows; ++i, row += stride, next += stride) {
      prefetch_row(next, C * VF);
      vf value[C];
      for (int c = 0; c < C; ++c) value[c] = load_upto(row + c * VF, C == 1 ? n : VF);
      for (int g = 0; g < G; ++g) {
        const vf weight = set1(weights[g * u.length + p + i]);
        for (int c = 0; c < C; ++c) sums[g][c] = fmadd(weight, value[c], sums[g][c]);
      }
    }
  });
  for (int g = 0; g < G; ++g) {
    T* out = u.out + g * a.head_dim + column;
    const vf norm = set1(norms[g]);
    for (int c = 0; c < C; ++c) store_upto(out + c * VF, mul(sums[g][c], norm), C == 1 ? n : VF);
  }
}

template <class T, int G>
void values(const PagedAttentionArgs& a, const Unit<T>& u, const float* weights, const float* norms) {
  constexpr int kSums = VF == 1 ? 1 : 3 * VF / 2, kColumns = G > kSums / 2 ? 1 : kSums / G >= 4 ? 4 : 2;
  int64_t i = 0;
  for (; i + kColumns * VF <= a.head_dim; i += kColumns * VF)
    weighted_values<T, G, kColumns>(a, u, weights, norms, i, VF);
  for (; i < a.head_dim; i += VF) weighted_values<T, G, 1>(a, u, weights, norms, i, min64(VF, a.head_dim - i));
}

template <class T>
void attend(const PagedAttentionArgs& a, const Unit<T>& u) {
  constexpr decltype(&values<T, 1>) kValues[kMaxGroup] = {values<T, 1>, values<T, 2>, values<T, 3>, values<T, 4>,
                                                          values<T, 5>, values<T, 6>, values<T, 7>, values<T, 8>};
  float norms[kMaxGroup];
  float* scores = static_cast<float*>(scratch(u.group * u.length * static_cast<int64_t>(sizeof(float))));
  score(a, u, scores);
  softmax(scores, u.length, u.group, norms);
  kValues[u.group - 1](a, u, scores, norms);
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
