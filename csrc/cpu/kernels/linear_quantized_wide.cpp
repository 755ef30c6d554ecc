// linear_int8 and linear_int4 for more rows than kMaxSkinnyRows (prompts), W read as it is stored.
//
// linear_planes splits x into int8 planes, linear_int8_wide and linear_int4_wide multiply. Threads claim a panel of
// columns at a time, for their tiles may differ in speed. Where the instruction set has no tiles, rows go sixteen at a
// time through linear_int8 or linear_int4, without planes. Either way a row has the result it has among few.
#include "int_dot.h"
#include "kernels.h"
#if defined(__AMX_INT8__)
#include "linear_int4_wide_amx.h"
#include "linear_int8_wide_amx.h"
#endif

namespace antiphon::ANTIPHON_ISA {

#if defined(__AMX_INT8__)
namespace {

constexpr int64_t kPanelsAhead = 8;  // of each thread, from which on one is claimed ahead of its turn

template <class T>
void pack_blocks(const PlanesArgs& a, int index, int count) {
  const int64_t text = plane_blocks(a.split), blocks = text + plane_blocks(a.num_rows - a.split);
  const Range range = partition(blocks, 1, index, count);
  for (int64_t block = range.begin; block < range.end; ++block) {
    const int64_t row = block < text ? block * kTileRows : a.split + (block - text) * kTileRows;
    const int64_t rows = min64(kTileRows, (block < text ? a.split : a.num_rows) - row);
    pack_planes(static_cast<const T*>(a.x) + row * a.x_stride, a.x_stride, rows, a.k,
                a.planes + block * 2 * kTileRows * a.k, a.steps + block * kTileRows);
  }
}

// The first or second branch; its weights and scales are so many elements.
template <class T, class Args, class Weight, class Scale>
PlaneProblem<T, Weight, Scale> wide_branch(const Args& a, const SplitRows& x, int64_t which, const Weight* weight,
                                           int64_t weights, const Scale* scale, int64_t scales) {
  const int64_t first = which == 0 ? 0 : a.split, skipped = which == 0 ? 0 : plane_blocks(a.split);
  return {x.planes + skipped * 2 * kTileRows * a.k,
          x.steps + skipped * kTileRows,
          weight + which * weights,
          scale + which * scales,
          a.bias ? static_cast<const T*>(a.bias) + which * a.n : nullptr,
          static_cast<T*>(a.out) + first * a.n,
          (which == 0 ? a.split : a.num_rows) - first, a.n, a.k};
}

// run(panel, the panel after it) for every panel of `width` columns that this thread claims. Where there are few, none
// is claimed ahead: they are shared out as threads finish.
template <class Run>
void claim_panels(std::atomic<int64_t>& next, int count, int64_t num_rows, int64_t split, int64_t n, int64_t width,
                  const Run& run) {
  const int64_t per_branch = (n + width - 1) / width;
  const int64_t begin = split > 0 ? 0 : per_branch, end = split < num_rows ? 2 * per_branch : per_branch;
  const bool ahead = end - begin >= kPanelsAhead * count;
  const auto claim = [&] {
    const int64_t unit = begin + next.fetch_add(1, std::memory_order_relaxed), column = unit % per_branch * width;
    return unit < end ? Panel{unit / per_branch, column, min64(width, n - column)} : Panel{};
  };
  configure_tiles(16);
  for (Panel panel = claim(); panel.columns > 0;) {
    const Panel after = ahead ? claim() : Panel{};
    run(panel, after);
    panel = ahead ? after : claim();
  }
  _tile_release();
}

template <class T>
void run_int8(const LinearInt8WideArgs& args, int count) {
  const LinearInt8Args& a = args.linear;
  const auto branch = [&](int64_t which) {
    return wide_branch<T>(a, args.x, which, a.weight, a.n * a.k, a.scale, a.n);
  };
  const Int8Wide<T> problems[] = {branch(0), branch(1)};
  const Int8WideMemory memory(max64(problems[0].blocks(), problems[1].blocks()), a.k);
  claim_panels(*args.x.next, count, a.num_rows, a.split, a.n, kInt8Panel, [&](const Panel& panel, const Panel& after) {
    int8_wide_panel(problems[panel.branch], panel, problems[after.branch], after, memory);
  });
}

template <class T>
void run_int4(const LinearInt4WideArgs& args, int count) {
  const LinearInt4Args& a = args.linear;
  const int64_t groups = a.k / kInt4Group;
  const auto branch = [&](int64_t which) {
    return wide_branch<T>(a, args.x, which, a.weight, a.n * a.k / 2, a.scale, a.n * groups);
  };
  const Int4Wide<T> problems[] = {branch(0), branch(1)};
  const Int4WideMemory memory(max64(problems[0].blocks(), problems[1].blocks()), groups);
  claim_panels(*args.x.next, count, a.num_rows, a.split, a.n, kInt4Panel, [&](const Panel& panel, const Panel& after) {
    int4_wide_panel(problems[panel.branch], panel, problems[after.branch], after, memory);
  });
}

}  // namespace

void linear_planes(const PlanesArgs& a, int index, int count) {
  (a.dtype == DType::f32 ? pack_blocks<float> : pack_blocks<bf16>)(a, index, count);
}

void linear_int8_wide(const LinearInt8WideArgs& a, int, int count) {
  a.linear.dtype == DType::f32 ? run_int8<float>(a, count) : run_int8<bf16>(a, count);
}

void linear_int4_wide(const LinearInt4WideArgs& a, int, int count) {
  a.linear.dtype == DType::f32 ? run_int4<float>(a, count) : run_int4<bf16>(a, count);
}
#else
namespace {

// kernel(rows of a) for every 16 of one branch.
template <class Args>
void by_sixteen(void (*kernel)(const Args&, int, int), const Args& a, int64_t weight, int64_t scale, int index,
                int count) {
  const int64_t size = a.dtype == DType::f32 ? 4 : 2;
  for (int64_t row = 0; row < a.num_rows;) {
    const int64_t rows = min64(kMaxSkinnyRows, (row < a.split ? a.split : a.num_rows) - row), branch = row >= a.split;
    Args part = a;
    part.x = static_cast<const char*>(a.x) + row * a.x_stride * size;
    part.weight += branch * weight;
    part.scale += branch * scale;
    if (a.bias) part.bias = static_cast<const char*>(a.bias) + branch * a.n * size;
    part.out = static_cast<char*>(a.out) + row * a.n * size;
    part.num_rows = part.split = rows;
    kernel(part, index, count);
    row += rows;
  }
}

}  // namespace

void linear_planes(const PlanesArgs&, int, int) {}

void linear_int8_wide(const LinearInt8WideArgs& a, int index, int count) {
  by_sixteen(linear_int8, a.linear, a.linear.n * a.linear.k, a.linear.n, index, count);
}

void linear_int4_wide(const LinearInt4WideArgs& a, int index, int count) {
  const int64_t n = a.linear.n, k = a.linear.k;
  by_sixteen(linear_int4, a.linear, n * k / 2, k / kInt4Group * n, index, count);
}
#endif

}  // namespace antiphon::ANTIPHON_ISA
