// y[t] = x[t] W^T + bias with W int4 in groups of 128 columns that share a bfloat16 scale; few rows (1..16).
//
// 64 bytes hold a group: the low half of byte i is column i, the high half column 64 + i, each a value + 8. Scales are
// [branches, groups, n], so that a block of rows reads them side by side. x is quantised into two int8 planes
// (int_dot.h); a group's sums are exact integers, and groups are added in float32 in their order (in lanes where the
// instruction set is used that way), so a row's result depends on neither batch nor threads.
#include "int_dot.h"
#include "kernels.h"
#if defined(__AMX_INT8__)
#include "linear_int4_amx.h"
#endif

namespace antiphon::ANTIPHON_ISA {
namespace {

constexpr int64_t kGroup = 128, kGroupBytes = 64;
constexpr int kInt4Rows = 2;

template <class T>
struct Int4Problem {
  const uint8_t* w;   // [n, k / 2]
  const bf16* scale;  // [k / 128, n]
  const T* bias;
  T* out;
  int64_t n, num_rows, k;
};

struct Int4Row {
  const IntDot::Plane *high, *low;  // [k]
  const int32_t* offsets;           // [k / 128]: what the weights' offset adds to a group's sum
  float step;
};

template <class T>
Int4Row split_for_int4(const T* x, int64_t k, IntDot::Plane* planes, int32_t* offsets) {
  std::memset(offsets, 0, k / kGroup * sizeof(int32_t));
  const float step = split_row(x, k, [&](int64_t i, const int8_t* high, const int8_t* low, int64_t n) {
    for (int64_t j = 0; j < n; ++j) {
      planes[i + j] = high[j];
      planes[k + i + j] = low[j];
      offsets[i / kGroup] += (256 * high[j] + low[j]) * IntDot::int4_offset;
    }
  });
  return {planes, planes + k, offsets, step};
}

template <class T, int R>
void int4_rows(const Int4Problem<T>& p, const Int4Row* x, int64_t n) {
  constexpr int kVectors = static_cast<int>(kGroup) / IntDot::width;
  vf sum[kMaxSkinnyRows][R];
  for (int64_t t = 0; t < p.num_rows; ++t)
    for (int r = 0; r < R; ++r) sum[t][r] = set1(0.0f);
  for (int64_t g = 0; g < p.k / kGroup; ++g) {
    IntDot::vec w[R][kVectors];
    vf scale[R];
    for (int r = 0; r < R; ++r) {
      const uint8_t* packed = p.w + (n + r) * p.k / 2 + g * kGroupBytes;
      prefetch(packed + 1024);
      IntDot::load_int4(packed, w[r]);
      scale[r] = set1(widen(p.scale[g * p.n + n + r]));
    }
    for (int64_t t = 0; t < p.num_rows; ++t) {
      IntDot::acc high[R], low[R];
      for (int r = 0; r < R; ++r) {
        high[r] = IntDot::start(0);
        low[r] = IntDot::start(x[t].offsets[g]);
      }
      for (int i = 0; i < kVectors; ++i) {
        const IntDot::vec xh = IntDot::load(x[t].high + g * kGroup + i * IntDot::width);
        const IntDot::vec xl = IntDot::load(x[t].low + g * kGroup + i * IntDot::width);
        for (int r = 0; r < R; ++r) {
          high[r] = IntDot::step(high[r], w[r][i], xh);
          low[r] = IntDot::step(low[r], w[r][i], xl);
        }
      }
      for (int r = 0; r < R; ++r) sum[t][r] = fmadd(IntDot::combine(high[r], low[r]), scale[r], sum[t][r]);
    }
  }
  for (int64_t t = 0; t < p.num_rows; ++t)
    for (int r = 0; r < R; ++r) {
      const float y = hsum(sum[t][r]) * x[t].step + (p.bias ? widen(p.bias[n + r]) : 0.0f);
      store_n(p.out + t * p.n + n + r, set1(y), 1);
    }
}

template <class T>
void int4_branch(const LinearInt4Args& a, int which, int64_t begin, int64_t end) {
  const int64_t first = which == 0 ? 0 : a.split, last = which == 0 ? a.split : a.num_rows, groups = a.k / kGroup;
  const T* x = static_cast<const T*>(a.x) + first * a.x_stride;
  const Int4Problem<T> p{a.weight + which * a.n * a.k / 2,
                         a.scale + which * groups * a.n,
                         a.bias ? static_cast<const T*>(a.bias) + which * a.n : nullptr,
                         static_cast<T*>(a.out) + first * a.n,
                         a.n, last - first, a.k};
#if defined(__AMX_INT8__)
  return tile_linear_int4(x, a.x_stride, p.num_rows, p.w, p.scale, p.bias, p.out, a.n, a.k, begin, end);
#endif
  const int64_t plane_bytes = 2 * a.k * static_cast<int64_t>(sizeof(IntDot::Plane));
  auto* memory = static_cast<char*>(scratch(p.num_rows * (plane_bytes + groups * 4)));
  Int4Row rows[kMaxSkinnyRows];
  for (int64_t t = 0; t < p.num_rows; ++t)
    rows[t] = split_for_int4(x + t * a.x_stride, a.k, reinterpret_cast<IntDot::Plane*>(memory + t * plane_bytes),
                             reinterpret_cast<int32_t*>(memory + p.num_rows * plane_bytes) + t * groups);
  int64_t n = begin;
  for (; n + kInt4Rows <= end; n += kInt4Rows) int4_rows<T, kInt4Rows>(p, rows, n);
  for (; n < end; ++n) int4_rows<T, 1>(p, rows, n);
}

template <class T>
void run_int4(const LinearInt4Args& a, int index, int count) {
  const bool text = a.split > 0, audio = a.split < a.num_rows;
  const Range range = partition((text + audio) * a.n, 32, index, count);
  if (text && range.begin < a.n) int4_branch<T>(a, 0, range.begin, min64(range.end, a.n));
  const int64_t shift = text ? a.n : 0;
  if (audio && range.end > shift) int4_branch<T>(a, 1, max64(range.begin - shift, 0), range.end - shift);
}

}  // namespace

void linear_int4(const LinearInt4Args& a, int index, int count) {
  a.dtype == DType::f32 ? run_int4<float>(a, index, count) : run_int4<bf16>(a, index, count);
}

}  // namespace antiphon::ANTIPHON_ISA
