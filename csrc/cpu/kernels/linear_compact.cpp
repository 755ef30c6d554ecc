// y[t] = x[t] W[branch]^T + bias[branch] with compact bfloat16 weights: the results of `linear` and `linear_wide` with the
// weights that they stand for, bit for bit.
//
// Few rows (1..16) are bound by reading W, which is three quarters of the bytes. Without tiles four rows of W at a time
// are widened to scratch and multiplied there. Many rows with tiles widen W as they go, with vectors a panel at a time.
#include "compact_rows.h"
#include "linear_rows.h"
#include "linear_wide_vector.h"
#include "row_runs.h"
#include "row_units.h"
#if defined(__AMX_BF16__)
#include "linear_compact_amx.h"
#endif

namespace antiphon::ANTIPHON_ISA {
namespace {

#if defined(__AMX_BF16__)
void branch(const LinearCompactArgs& a, int which, RowUnits units) {
  const int64_t first = which == 0 ? 0 : a.split, last = which == 0 ? a.split : a.num_rows;
  tile_linear_compact(a.x + first * a.x_stride, a.x_stride, last - first,
                      CompactBranch(a.weight, a.codes, which, a.n, a.k), a.k, a.bias ? a.bias + which * a.n : nullptr,
                      a.out + first * a.n, a.n, units);
}
#else
void branch(const LinearCompactArgs& a, int which, RowUnits units) {
  const int64_t first = which == 0 ? 0 : a.split, last = which == 0 ? a.split : a.num_rows;
  const RowProblem<bf16> p{a.x + first * a.x_stride, a.x_stride, a.k, last - first, a.k};
  const bf16* bias = a.bias ? a.bias + which * a.n : nullptr;
  bf16* out = a.out + first * a.n;
  const UpperBytes upper(a.codes);
  bf16* rows = static_cast<bf16*>(scratch(kBlockRows * a.k * 2));
  for (Range range; units.take(range);) {
    int64_t n = range.begin;
    const auto block = [&](auto run, int64_t count) {
      const int64_t row_bytes = compact_row_bytes(a.k), row = which * a.n + n;
      const uint8_t* first = a.weight + row * row_bytes;
      LinesAhead ahead(first + count * row_bytes, count * row_bytes, block_steps(p) + count * (a.k / kCompactGroup));
      for (int64_t r = 0; r < count; ++r)
        widen_row(first + r * row_bytes, a.codes, upper, row + r, a.k, rows + r * a.k,
                  [&](const uint8_t*) { ahead.fetch(); });
      run(p, rows, bias ? bias + n : nullptr, out + n, a.n, ahead);
      n += count;
    };
    while (n + kBlockRows <= range.end) block(row_block<bf16, kBlockRows>, kBlockRows);
    while (n < range.end) block(row_block<bf16, 1>, 1);
  }
}
#endif

}  // namespace

void linear_compact(const LinearCompactArgs& a, int index, int count) {
  for_branches(a, a.next, unit_rows(compact_row_bytes(a.k)), index, count,
               [&](int which, const RowUnits& units) { branch(a, which, units); });
}

#if defined(__AMX_BF16__)
void linear_compact_wide(const LinearCompactWideArgs& args, int, int count) {
  const LinearWideArgs& a = args.linear;
  const CompactBranch branches[] = {{args.weight, args.codes, 0, a.n, a.k}, {args.weight, args.codes, 1, a.n, a.k}};
  float* memory = static_cast<float*>(scratch(compact_wide_memory(max64(a.split, a.num_rows - a.split))));
  claim_wide_panels(a, count, [&](const WideProblem& p, const WideWalk& walk, int64_t n, int64_t columns, int64_t next,
                                  int64_t which) {
    compact_panels(p, branches[which], walk, n, columns, next, memory);
  });
}
#else
void linear_compact_wide(const LinearCompactWideArgs& args, int, int count) {
  const LinearWideArgs& a = args.linear;
  const VectorMemory<bf16> memory(max64(a.split, a.num_rows - a.split), kVectorPanel * a.k);
  const UpperBytes upper(args.codes);
  claim_vector_panels<bf16>(a, count, [&](const VectorProblem<bf16>& p, int64_t branch, int64_t n, int64_t columns,
                                          int64_t) {
    for (int64_t r = 0; r < columns; ++r) {
      const int64_t row = branch * a.n + n + r;
      widen_row(args.weight + row * compact_row_bytes(a.k), args.codes, upper, row, a.k, memory.more + r * a.k);
    }
    const TakenPanel<VectorProducts<bf16>, bf16> panel(memory.more, a.k, a.k, columns, nullptr, memory.chunk);
    vector_panel<VectorProducts<bf16>>(p, panel, n, columns, memory);
  });
}
#endif

}  // namespace antiphon::ANTIPHON_ISA
