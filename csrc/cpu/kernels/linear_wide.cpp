// y[t] = x[t] W[branch]^T + bias[branch] in bfloat16 for any number of rows, too many for one tile.
//
// linear_wide_pack turns x into tiles in a workspace, then linear_wide multiplies. Threads claim a panel of columns at a
// time, for their tiles may differ in speed. Where the instruction set has no tiles or k is not a multiple of 32, rows go
// through `linear` sixteen at a time and the workspace is not used: the specification of the tiled version, not a fast
// path.
#include "kernels.h"
#include "simd.h"
#if defined(__AMX_BF16__)
#include "linear_wide_amx.h"
#endif

namespace antiphon::ANTIPHON_ISA {

namespace {

void by_sixteen(const LinearWideArgs& a, int index, int count) {
  for (int64_t row = 0; row < a.num_rows;) {
    const int64_t rows = min64(kMaxSkinnyRows, (row < a.split ? a.split : a.num_rows) - row), branch = row >= a.split;
    linear(LinearArgs{DType::bf16, a.x + row * a.x_stride, a.x_stride, a.weight + branch * a.n * a.w_stride,
                      a.w_stride, a.bias ? a.bias + branch * a.n : nullptr, a.out + row * a.n, rows, rows, a.n, a.k},
           index, count);
    row += rows;
  }
  if (a.activation == Activation::none) return;
  job_barrier(count);
  gelu({DType::bf16, a.out, a.out, a.num_rows * a.n, a.activation == Activation::gelu_tanh}, index, count);
}

}  // namespace

#if defined(__AMX_BF16__)
namespace {

WideProblem branch(const LinearWideArgs& a, int64_t which) {
  const int64_t first = which == 0 ? 0 : a.split, skipped = which == 0 ? 0 : wide_blocks(a.split);
  return {a.workspace + skipped * kTileRows * a.k,
          a.weight + which * a.n * a.w_stride,
          a.w_stride,
          a.bias ? a.bias + which * a.n : nullptr,
          a.out + first * a.n,
          a.packed_out,
          a.activation,
          (which == 0 ? a.split : a.num_rows) - first, a.n, a.k};
}

// Rows that are multiplied with all of W before the next ones: parts of like size that fit the second-level cache beside
// a panel of W, but enough to be worth reading W for.
int64_t rows_at_once(int64_t rows, int64_t k) {
  const int64_t most = max64(256, (int64_t{1} << 19) / k), parts = max64(1, (rows + most - 1) / most);
  return ((rows + parts - 1) / parts + kWideRows - 1) / kWideRows * kWideRows;
}

// Up to `count` rows from `row` on, a multiple of 16.
WideProblem rows_of(WideProblem p, int64_t row, int64_t count) {
  p.x += row * p.k;
  p.out += row * p.n;
  if (p.packed_out) p.packed_out += row * p.n;
  p.num_rows = min64(count, p.num_rows - row);
  return p;
}

}  // namespace

void linear_wide_pack(const LinearWideArgs& a, int index, int count) {
  if (a.k % kDepth) return;
  const int64_t text = wide_blocks(a.split), blocks = text + wide_blocks(a.num_rows - a.split);
  const Range range = partition(blocks, 1, index, count);
  for (int64_t block = range.begin; block < range.end; ++block) {
    const int64_t row = block < text ? block * kTileRows : a.split + (block - text) * kTileRows;
    const int64_t rows = min64(kTileRows, (block < text ? a.split : a.num_rows) - row);
    pack_block(a.x + row * a.x_stride, a.x_stride, rows, a.k, a.workspace + block * kTileRows * a.k);
  }
}

void linear_wide(const LinearWideArgs& a, int index, int count) {
  if (a.k % kDepth) return by_sixteen(a, index, count);
  const auto claim = [&] { return a.next->fetch_add(1, std::memory_order_relaxed); };
  float* memory = static_cast<float*>(scratch(wide_memory(max64(a.split, a.num_rows - a.split), a.k)));
  configure_tiles(16);
  const WideProblem problems[] = {branch(a, 0), branch(a, 1)};
  int64_t unit = claim(), first = 0;
  for (const WideProblem& whole : problems) {
    const int64_t step = rows_at_once(whole.num_rows, a.k);
    const WideWalk walk = wide_walk(min64(step, whole.num_rows), a.k);
    const int64_t columns = walk.panels * kWideRows, units = (a.n + columns - 1) / columns;
    for (int64_t row = 0; row < whole.num_rows; row += step, first += units) {
      const WideProblem p = rows_of(whole, row, step);
      for (; unit < first + units; unit = claim()) {
        const int64_t n = (unit - first) * columns, next = n + count * columns;  // if threads are equally fast
        wide_panels(p, walk, n, min64(columns, a.n - n), next < a.n ? p.w + next * p.w_stride : nullptr, memory);
      }
    }
  }
  _tile_release();
}
#else
void linear_wide_pack(const LinearWideArgs&, int, int) {}

void linear_wide(const LinearWideArgs& a, int index, int count) { by_sixteen(a, index, count); }
#endif

}  // namespace antiphon::ANTIPHON_ISA
