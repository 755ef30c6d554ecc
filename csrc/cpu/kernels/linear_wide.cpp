// y[t] = x[t] W[branch]^T + bias[branch] for any number of rows: bound by arithmetic.
//
// linear_wide_pack turns x into tiles in a workspace, then linear_wide multiplies. Threads claim 32 columns of the result at a time, for their tiles may differ in speed.
// Where the instruction set has no tiles, rows go through `linear` sixteen at a time and the workspace is not used: the
// specification of the tiled version, not a fast path.
#include "kernels.h"
#if defined(__AMX_BF16__)
#include "linear_wide_amx.h"
#endif

namespace antiphon::ANTIPHON_ISA {

#if defined(__AMX_BF16__)
namespace {

template <class T>
void pack(const LinearWideArgs& a, int index, int count) {
  const int64_t text = wide_blocks(a.split), blocks = text + wide_blocks(a.num_rows - a.split);
  const Range range = partition(blocks, 1, index, count);
  for (int64_t block = range.begin; block < range.end; ++block) {
    const int64_t row = block < text ? block * kTileRows : a.split + (block - text) * kTileRows;
    const int64_t rows = min64(kTileRows, (block < text ? a.split : a.num_rows) - row);
    pack_block(static_cast<const T*>(a.x) + row * a.x_stride, a.x_stride, rows, a.k,
               a.workspace + block * block_elements<T>(a.k));
  }
}

template <class T>
WideProblem<T> branch(const LinearWideArgs& a, int64_t which) {
  const int64_t first = which == 0 ? 0 : a.split, skipped = which == 0 ? 0 : wide_blocks(a.split);
  return {a.workspace + skipped * block_elements<T>(a.k),
          static_cast<const T*>(a.weight) + which * a.n * a.k,
          a.bias ? static_cast<const T*>(a.bias) + which * a.n : nullptr,
          static_cast<T*>(a.out) + first * a.n,
          (which == 0 ? a.split : a.num_rows) - first, a.n, a.k};
}

template <class T>
void run_wide(const LinearWideArgs& a) {
  const WideProblem<T> problems[] = {branch<T>(a, 0), branch<T>(a, 1)};
  const int64_t per_branch = (a.n + 2 * kTileRows - 1) / (2 * kTileRows);
  const int64_t begin = a.split > 0 ? 0 : per_branch, end = a.split < a.num_rows ? 2 * per_branch : per_branch;
  const WideMemory<T> memory(max64(a.split, a.num_rows - a.split), a.k);
  configure_tiles(16);
  for (int64_t unit; (unit = begin + a.next->fetch_add(1, std::memory_order_relaxed)) < end;)
    wide_columns(problems[unit / per_branch], unit % per_branch * 2 * kTileRows, memory);
  _tile_release();
}

}  // namespace

void linear_wide_pack(const LinearWideArgs& a, int index, int count) {
  a.dtype == DType::f32 ? pack<float>(a, index, count) : pack<bf16>(a, index, count);
}

void linear_wide(const LinearWideArgs& a, int, int) { a.dtype == DType::f32 ? run_wide<float>(a) : run_wide<bf16>(a); }
#else
void linear_wide_pack(const LinearWideArgs&, int, int) {}

void linear_wide(const LinearWideArgs& a, int index, int count) {
  const int64_t size = a.dtype == DType::f32 ? 4 : 2;
  for (int64_t row = 0; row < a.num_rows;) {
    const int64_t rows = min64(kMaxSkinnyRows, (row < a.split ? a.split : a.num_rows) - row), branch = row >= a.split;
    const auto from = [&](const void* p, int64_t elements) { return static_cast<const char*>(p) + elements * size; };
    linear(LinearArgs{a.dtype, from(a.x, row * a.x_stride), a.x_stride, from(a.weight, branch * a.n * a.k),
                      a.bias ? from(a.bias, branch * a.n) : nullptr, const_cast<char*>(from(a.out, row * a.n)), rows, rows,
                      a.n, a.k},
           index, count);
    row += rows;
  }
}
#endif

}  // namespace antiphon::ANTIPHON_ISA
