// y[t] = x[t] W[branch]^T + bias[branch] for any number of rows, float32 or bfloat16.
//
// linear_wide_pack brings x into a workspace in the order in which linear_wide reads it: as tiles of bfloat16 where the
// instruction set has them, for vectors elsewhere; weight_to_panels does the same for W, for vectors only. Threads claim a
// panel of columns at a time, for they may differ in speed. Tiles need k to be a multiple of 32; otherwise rows go through `linear` sixteen at a time and the workspace is
// not used.
#include "kernels.h"
#include "linear_wide_products.h"
#include "simd.h"
#if defined(__AMX_BF16__)
#include "linear_wide_amx.h"
#endif

namespace antiphon::ANTIPHON_ISA {

extern const int64_t panel_outputs = kVectorPanel;

#if defined(__AMX_BF16__)
namespace {

void by_sixteen(const LinearWideArgs& a, int index, int count) {
  const bf16 *x = static_cast<const bf16*>(a.x), *w = static_cast<const bf16*>(a.weight);
  const bf16* bias = static_cast<const bf16*>(a.bias);
  bf16* out = static_cast<bf16*>(a.out);
  for (int64_t row = 0; row < a.num_rows;) {
    const int64_t rows = min64(kMaxSkinnyRows, (row < a.split ? a.split : a.num_rows) - row), branch = row >= a.split;
    linear(LinearArgs{DType::bf16, x + row * a.x_stride, a.x_stride, w + branch * a.n * a.w_stride, a.w_stride,
                      bias ? bias + branch * a.n : nullptr, out + row * a.n, rows, rows, a.n, a.k},
           index, count);
    row += rows;
  }
  if (a.activation == Activation::none) return;
  job_barrier(count);
  gelu({DType::bf16, a.out, a.out, a.num_rows * a.n, a.activation == Activation::gelu_tanh}, index, count);
}

void pack_tiles(const LinearWideArgs& a, int index, int count) {
  if (a.k % kDepth) return;
  const int64_t text = wide_blocks(a.split), blocks = text + wide_blocks(a.num_rows - a.split);
  const Range range = partition(blocks, 1, index, count);
  for (int64_t block = range.begin; block < range.end; ++block) {
    const int64_t row = block < text ? block * kTileRows : a.split + (block - text) * kTileRows;
    const int64_t rows = min64(kTileRows, (block < text ? a.split : a.num_rows) - row);
    pack_block(static_cast<const bf16*>(a.x) + row * a.x_stride, a.x_stride, rows, a.k,
               static_cast<bf16*>(a.workspace) + block * kTileRows * a.k);
  }
}

void wide_in_tiles(const LinearWideArgs& a, int index, int count) {
  if (a.k % kDepth) return by_sixteen(a, index, count);
  float* memory = static_cast<float*>(scratch(wide_memory(max64(a.split, a.num_rows - a.split), a.k)));
  claim_wide_panels(a, count, [&](const WideProblem& p, const WideWalk& walk, int64_t n, int64_t columns, int64_t next,
                                  int64_t) {
    wide_panels(p, walk, n, columns, next < p.n ? p.w + next * p.w_stride : nullptr, memory);
  });
}

}  // namespace
#endif

void linear_wide_pack(const LinearWideArgs& a, int index, int count) {
  if (a.dtype == DType::f32)
#if ANTIPHON_ADDS_BESIDE_PRODUCTS
    return pack_for_vectors<float>(a, index, count, [&](const float* x, int64_t rows, float* to) {
      pack_pairs(x, a.x_stride, rows, a.k, to);
    });
#else
    return pack_for_vectors<float>(a, index, count);
#endif
#if defined(__AMX_BF16__)
  pack_tiles(a, index, count);
#else
  pack_for_vectors<bf16>(a, index, count);
#endif
}

void linear_wide(const LinearWideArgs& a, int index, int count) {
  if (a.dtype == DType::f32)
#if ANTIPHON_ADDS_BESIDE_PRODUCTS
    return wide_in_pairs(a, index, count);
#else
    return wide_in_vectors<FloatProducts, float>(a, count);
#endif
#if defined(__AMX_BF16__)
  wide_in_tiles(a, index, count);
#else
  (void)index;
  wide_in_vectors<HalfProducts, bf16>(a, count);
#endif
}

void weight_to_panels(const WeightPanelsArgs& a, int index, int count) {
  a.dtype == DType::f32 ? to_panels<FloatProducts, float>(a, index, count) : to_panels<HalfProducts, bf16>(a, index, count);
}

void weight_from_panels(const WeightPanelsArgs& a, int index, int count) {
  a.dtype == DType::f32 ? from_panels<FloatProducts, float>(a, index, count)
                        : from_panels<HalfProducts, bf16>(a, index, count);
}

}  // namespace antiphon::ANTIPHON_ISA
