// y[t] = x[t] W[branch]^T + bias[branch] with compact bfloat16 weights: the results of `linear` and, in vectors or tiles, of
// `linear_wide` with the weights that they stand for, bit for bit, in float32 those widened.
//
// Few rows (1..16) are bound by reading W, three quarters of the bytes of bfloat16, three eighths of those of float32. In
// vectors four rows of W at a time are widened to scratch, as many columns as stay in the first-level cache, and multiplied
// there. Many rows with tiles widen W as they go, with vectors a panel at a time.
#include <tuple>

#include "compact_rows.h"
#include "linear_rows.h"
#include "linear_wide_products.h"
#include "row_runs.h"
#include "row_units.h"
#if defined(__AMX_BF16__)
#include "linear_compact_amx.h"
#endif

namespace antiphon::ANTIPHON_ISA {
namespace {

// As StoredRows: R rows of W, row `row` of all branches' and those after it, widened some columns at a time.
template <int R>
struct WidenedRows {
  static constexpr int64_t kColumns = kCompactGroup, kMost = 1536;
  static constexpr int64_t stride = kMost;

  WidenedRows(const LinearCompactArgs& a, const UpperBytes& upper, int64_t row, LinesAhead* ahead, bf16* widened)
      : bytes(a.weight + row * compact_row_bytes(a.k)), row_bytes(compact_row_bytes(a.k)), upper(upper), ahead(ahead),
        widened(widened) {
    for (int r = 0; r < R; ++r) std::tie(escapes[r], last[r]) = escapes_of(a.codes, row + r);
  }

  const bf16* at(int64_t begin, int64_t end) {
    for (int r = 0; r < R; ++r)
      widen_columns(bytes + r * row_bytes, upper, begin, end, escapes[r], last[r], widened + r * stride,
                    [&](const uint8_t*) { ahead->fetch(); });
    return widened;
  }

  const uint8_t* bytes;
  int64_t row_bytes;
  UpperBytes upper;
  LinesAhead* ahead;
  bf16* widened;  // [R][kMost]
  const int32_t *escapes[R], *last[R];
};

// In vectors.
template <class T>
void branch(const LinearCompactArgs& a, int which, RowUnits units) {
  const int64_t first = which == 0 ? 0 : a.split, last = which == 0 ? a.split : a.num_rows;
  const RowProblem<T> p{static_cast<const T*>(a.x) + first * a.x_stride, a.x_stride, last - first, a.k};
  const T* bias = a.bias ? static_cast<const T*>(a.bias) + which * a.n : nullptr;
  T* out = static_cast<T*>(a.out) + first * a.n;
  const UpperBytes upper(a.codes);
  bf16* widened = static_cast<bf16*>(scratch(kBlockRows * WidenedRows<kBlockRows>::kMost * 2));
  for (Range range; units.take(range);) {
    int64_t n = range.begin;
    const auto block = [&](auto count) {
      const int64_t row_bytes = compact_row_bytes(a.k), row = which * a.n + n;
      LinesAhead ahead(a.weight + (row + count) * row_bytes, count * row_bytes,
                       block_steps(p) + count * (a.k / kCompactGroup));
      row_block<T, count>(p, WidenedRows<count>(a, upper, row, &ahead, widened), bias ? bias + n : nullptr, out + n, a.n,
                          ahead);
      n += count;
    };
    while (n + kBlockRows <= range.end) block(std::integral_constant<int, kBlockRows>{});
    while (n < range.end) block(std::integral_constant<int, 1>{});
  }
}

#if defined(__AMX_BF16__)
void branch_in_tiles(const LinearCompactArgs& a, int which, RowUnits units) {
  const int64_t first = which == 0 ? 0 : a.split, last = which == 0 ? a.split : a.num_rows;
  tile_linear_compact(static_cast<const bf16*>(a.x) + first * a.x_stride, a.x_stride, last - first,
                      CompactBranch(a.weight, a.codes, which, a.n, a.k), a.k,
                      a.bias ? static_cast<const bf16*>(a.bias) + which * a.n : nullptr,
                      static_cast<bf16*>(a.out) + first * a.n, a.n, units);
}
constexpr auto half_branch = branch_in_tiles;
#else
constexpr auto half_branch = branch<bf16>;
#endif

// Chunks of W in float32 from rows that were made compact.
class WidenedPanel {
 public:
  // rows [outputs, k]; a place for a chunk of them, and one for it as products read it.
  WidenedPanel(const bf16* rows, int64_t k, int64_t outputs, float* columns, float* chunk)
      : rows_(rows), k_(k), outputs_(outputs), columns_(columns), chunk_(chunk) {}

  const float* chunk(int64_t begin, int64_t columns, int64_t) {
    for (int64_t r = 0; r < outputs_; ++r)
      for (int64_t c = 0; c < columns; c += VF) store(columns_ + r * kWideChunk + c, load(rows_ + r * k_ + begin + c));
    FloatProducts::take(columns_, kWideChunk, outputs_, columns, chunk_);
    return chunk_;
  }
  Ahead fetch() { return {reinterpret_cast<const char*>(chunk_), 0}; }

 private:
  const bf16* rows_;
  int64_t k_, outputs_;
  float *columns_, *chunk_;
};

// panel(rows of bfloat16 [outputs, k], problem, n, outputs) for all panels that this thread claims, `rows` for them.
template <class T, class Panel>
void widen_panels(const LinearCompactWideArgs& args, int count, bf16* rows, const Panel& panel) {
  const LinearWideArgs& a = args.linear;
  const UpperBytes upper(args.codes);
  claim_vector_panels<T>(a, count, [&](const VectorProblem<T>& p, int64_t branch, int64_t n, int64_t outputs, int64_t) {
    for (int64_t r = 0; r < outputs; ++r) {
      const int64_t row = branch * a.n + n + r;
      widen_row(args.weight + row * compact_row_bytes(a.k), args.codes, upper, row, a.k, rows + r * a.k);
    }
    panel(p, n, outputs);
  });
}

void wide_in_floats(const LinearCompactWideArgs& args, int count) {
  const LinearWideArgs& a = args.linear;
  constexpr int64_t kColumns = kVectorPanel * kWideChunk;
  const VectorMemory<float> memory(max64(a.split, a.num_rows - a.split), kColumns + kVectorPanel * a.k / 2);
  bf16* rows = reinterpret_cast<bf16*>(memory.more + kColumns);
  widen_panels<float>(args, count, rows, [&](const VectorProblem<float>& p, int64_t n, int64_t outputs) {
    const WidenedPanel panel(rows, a.k, outputs, memory.more, memory.chunk);
    vector_panel<FloatProducts>(p, panel, n, outputs, memory);
  });
}

#if defined(__AMX_BF16__)
void wide_in_halves(const LinearCompactWideArgs& args, int count) {
  const LinearWideArgs& a = args.linear;
  const CompactBranch branches[] = {{args.weight, args.codes, 0, a.n, a.k}, {args.weight, args.codes, 1, a.n, a.k}};
  float* memory = static_cast<float*>(scratch(compact_wide_memory(max64(a.split, a.num_rows - a.split))));
  claim_wide_panels(a, count, [&](const WideProblem& p, const WideWalk& walk, int64_t n, int64_t columns, int64_t next,
                                  int64_t which) {
    compact_panels(p, branches[which], walk, n, columns, next, memory);
  });
}
#else
void wide_in_halves(const LinearCompactWideArgs& args, int count) {
  const LinearWideArgs& a = args.linear;
  const VectorMemory<bf16> memory(max64(a.split, a.num_rows - a.split), kVectorPanel * a.k);
  widen_panels<bf16>(args, count, memory.more, [&](const VectorProblem<bf16>& p, int64_t n, int64_t outputs) {
    const TakenPanel<HalfProducts, bf16> panel(memory.more, a.k, a.k, outputs, nullptr, memory.chunk);
    vector_panel<HalfProducts>(p, panel, n, outputs, memory);
  });
}
#endif

}  // namespace

void linear_compact(const LinearCompactArgs& a, int index, int count) {
  const auto run = a.dtype == DType::f32 ? branch<float> : half_branch;
  for_branches(a, a.next, unit_rows(compact_row_bytes(a.k)), index, count,
               [&](int which, const RowUnits& units) { run(a, which, units); });
}

void linear_compact_wide(const LinearCompactWideArgs& a, int, int count) {
  a.linear.dtype == DType::f32 ? wide_in_floats(a, count) : wide_in_halves(a, count);
}

}  // namespace antiphon::ANTIPHON_ISA
