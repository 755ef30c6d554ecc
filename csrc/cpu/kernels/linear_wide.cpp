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
  float* memory = static_cast<float*>(scratch(wide_memory(max64(a.split, a.num_rows - a.split), a.k)));
  claim_wide_panels(a, count, [&](const WideProblem& p, const WideWalk& walk, int64_t n, int64_t columns, int64_t next,
                                  int64_t) {
    wide_panels(p, walk, n, columns, next < p.n ? p.w + next * p.w_stride : nullptr, memory);
  });
}
#else
void linear_wide_pack(const LinearWideArgs&, int, int) {}

void linear_wide(const LinearWideArgs& a, int index, int count) { by_sixteen(a, index, count); }
#endif

}  // namespace antiphon::ANTIPHON_ISA
