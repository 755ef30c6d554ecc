// Attention of many rows, online over blocks of keys: what flow_attention, encoder_attention and prefill share.
//
//   out[i] = sum_j w_j v[j] / sum_j w_j,   w_j = exp(scale * (q[i] . k[j] - max)),   j < end(i)
//
// A Problem, one head of one sequence, says where things lie: Element, query(i), output(i), end(i) (at least 1 key is
// visible, always a prefix), key(j), value(j), rows, keys, head_dim, scale > 0. Elements of a row are neighbours; rows
// may lie anywhere.
//
// Query rows are lanes: a "group" of VF rows has scores [key][VF], so maximum, exponential and sum never cross lanes,
// and a row's result does not depend on which rows share its vectors or tiles. Keys are taken in blocks that start at
// multiples of kKeyBlock, in order; a key that a row does not see adds exact zeros, a whole block of them multiplies by
// exactly 1. So a row has the same bits in every batch, chunk and thread. float32 throughout; for bfloat16 the weights
// are rounded for the product with v, while their sum is of the unrounded ones.
#pragma once

#include <atomic>
#include <type_traits>

#include "kernels.h"
#include "simd.h"

namespace antiphon::ANTIPHON_ISA {

constexpr int64_t kUnitRows = AttentionPlan::kChunkRows, kKeyBlock = AttentionPlan::kBlockKeys;
constexpr int64_t kKeyStep = AttentionPlan::kKeyStep;  // keys are padded with zeros to multiples of this
constexpr float kHidden = 1e30f;                       // what a hidden score is lowered by

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Calls f(unit) for the units that come to this thread; threads may differ in speed.
template <class F>
inline void claim_units(std::atomic<int64_t>* next, int64_t units, const F& f) {
  for (int64_t unit; (unit = next->fetch_add(1, std::memory_order_relaxed)) < units;) f(unit);
}

// The state of a group.
struct Lanes {
  float highest[VF], total[VF], decay[VF];
  float ends[VF];               // as float: exact up to 2^24 keys
  int64_t first_end, last_end;  // smallest and largest
};

// exp(scale * (score - top)), score <= top; exactly 1 where they are equal. `factor` is weight_factor(scale).
template <class T>
inline vf weight(vf score, vf top, vf factor) {
  return exp2<T>(mul(sub(score, top), factor));
}
inline float weight_factor(float scale) { return scale * kLog2E; }

// 1 where the lane sees the key, else 0.
inline vf visible(vf ends, int64_t key) {
  return min(max(sub(ends, set1(static_cast<float>(key))), set1(0.0f)), set1(1.0f));
}

// Scores [n][VF] of keys [first, first + n), n a multiple of 4, become weights: put(j, w_j, w_j+1) for even j. Advances
// the lanes; their decay is what earlier sums are to be multiplied by.
template <class T, bool kMasked, class Put>
inline void soften(Lanes& lanes, float* scores, int64_t first, int64_t n, float factor, const Put& put) {
  const vf ends = load(lanes.ends), before = load(lanes.highest);
  vf tops[4] = {before, before, before, before}, sums[4];
  for (int64_t j = 0; j < n; j += 4)
    for (int i = 0; i < 4; ++i) {
      vf score = load(scores + (j + i) * VF);
      if (kMasked) {
        score = fmadd(sub(visible(ends, first + j + i), set1(1.0f)), set1(kHidden), score);
        store(scores + (j + i) * VF, score);
      }
      tops[i] = max(score, tops[i]);  // in this order a score that is not a number is never the highest
    }
  const vf top = max(max(tops[0], tops[1]), max(tops[2], tops[3])), factors = set1(factor);
  for (vf& sum : sums) sum = set1(0.0f);
  for (int64_t j = 0; j < n; j += 4) {
    vf w[4];
    for (int i = 0; i < 4; ++i) {
      w[i] = weight<T>(load(scores + (j + i) * VF), top, factors);
      if (kMasked) w[i] = mul(w[i], visible(ends, first + j + i));
      sums[i] = add(sums[i], w[i]);
    }
    put(j, w[0], w[1]);
    put(j + 2, w[2], w[3]);
  }
  const vf decay = weight<T>(before, top, factors);
  store(lanes.highest, top);
  store(lanes.decay, decay);
  store(lanes.total, fmadd(load(lanes.total), decay, add(add(sums[0], sums[1]), add(sums[2], sums[3]))));
}

// Of each group's `lanes`, those past `rows` repeat the last one.
template <class Problem>
inline void start_lanes(const Problem& p, int64_t row, int64_t rows, Lanes& lanes) {
  lanes.first_end = lanes.last_end = p.end(row);
  for (int64_t i = 0; i < VF; ++i) {
    const int64_t end = p.end(row + min64(i, rows - 1));
    lanes.first_end = min64(lanes.first_end, end);
    lanes.last_end = max64(lanes.last_end, end);
    lanes.ends[i] = static_cast<float>(end);
    lanes.highest[i] = -kHidden;
    lanes.total[i] = 0.0f;
  }
}

// A block of packed keys, the first of them `first`, of which one or two groups see `n`; none: no block.
template <class Stored>
struct Meeting {
  const Stored* keys = nullptr;
  int64_t group = 0, groups = 0, first = 0, n = 0;
};

// Every block that groups [0, groups) see, in order, blocks of `stride` elements: each of the groups' pairs meets it.
template <class Block>
class Meetings {
 public:
  using Stored = typename Block::Stored;
  Meetings(Block& block, const Stored* keys, int64_t stride, int64_t groups)
      : block_(block), keys_(keys), stride_(stride), groups_(groups) {
    for (int64_t g = 0; g < groups; ++g) last_ = max64(last_, block.lanes(g).last_end);
  }
  Meeting<Stored> next() {
    for (; first_ < last_; first_ += kKeyBlock, keys_ += stride_, group_ = 0)
      while (group_ < groups_) {
        const int64_t group = group_, groups = min64(2, groups_ - group);
        group_ += 2;
        int64_t last = 0;
        for (int64_t g = 0; g < groups; ++g) last = max64(last, block_.lanes(group + g).last_end);
        if (last > first_)
          return {keys_, group, groups, first_, round_up(min64(kKeyBlock, last - first_), kKeyStep)};
      }
    return {};
  }

 private:
  Block& block_;
  const Stored* keys_;
  int64_t stride_, groups_, last_ = 0, first_ = 0, group_ = 0;
};

// Scores of a meeting, [group][kKeyBlock][VF], become weights: put(g, j, w_j, w_j+1).
template <class T, class Block, class Put>
inline void weigh(Block& block, const Meeting<typename Block::Stored>& m, float* scores, float factor, const Put& put) {
  for (int64_t g = 0; g < m.groups; ++g, scores += kKeyBlock * VF) {
    Lanes& lanes = block.lanes(m.group + g);
    const auto of_group = [&](int64_t j, vf a, vf b) { put(g, j, a, b); };
    lanes.first_end < m.first + m.n ? soften<T, true>(lanes, scores, m.first, m.n, factor, of_group)
                                    : soften<T, false>(lanes, scores, m.first, m.n, factor, of_group);
  }
}

}  // namespace antiphon::ANTIPHON_ISA

#include "attention_vector.h"
#if defined(__AMX_BF16__)
#include "attention_split_amx.h"
#endif

namespace antiphon::ANTIPHON_ISA {

template <class T>
struct BlockOf {
  using type = VectorBlock<T>;
};
#if defined(__AMX_BF16__)
template <>
struct BlockOf<bf16> {
  using type = TileBlock<Whole>;
};
template <>
struct BlockOf<float> {
  using type = TileBlock<Split>;
};
#endif

// Rows [begin, end) of a problem, at most kUnitRows, against its packed keys, blocks of `stride` elements.
template <class Problem, class Stored>
inline void attend(const Problem& p, const Stored* keys, int64_t stride, int64_t begin, int64_t end) {
  using T = typename Problem::Element;
  const int64_t groups = (end - begin + VF - 1) / VF;
  typename BlockOf<T>::type block(p.head_dim, groups);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t row = begin + g * VF, rows = min64(VF, end - row);
    block.load_queries(p, row, rows, g);
    start_lanes(p, row, rows, block.lanes(g));
  }
  block.meet(Meetings(block, keys, stride, groups), weight_factor(p.scale));
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t row = begin + g * VF;
    block.store_rows(p, row, min64(VF, end - row), g);
  }
}

// The sequence that holds item `at` of a running total.
inline int64_t sequence_of(const int64_t* totals, int64_t at) {
  int64_t s = 0;
  while (totals[s + 1] <= at) ++s;
  return s;
}

// All rows of all sequences. problem(sequence, head) says where they lie and has `rows` and `keys`, how many there are.
// Threads first claim steps of keys of all heads, for heads are neighbours in memory, as far as they are not packed
// already, then chunks of the rows of one head, the last and under a causal mask longest chunk first.
template <class T, class F>
inline void attend_all(const AttentionPlan& plan, int count, const F& problem) {
  using Block = typename BlockOf<T>::type;
  using Stored = typename Block::Stored;
  const int64_t heads = plan.heads, sequences = plan.num_sequences, steps = kKeyBlock / kKeyStep;
  constexpr DType dtype = std::is_same_v<T, float> ? DType::f32 : DType::bf16;
  static_assert(Block::kPieces * sizeof(Stored) <= AttentionPlan::stored_bytes(dtype), "the workspace is sized by it");
  const int64_t stride = 2 * kKeyBlock * Block::padded(plan.head_dim) * Block::kPieces;
  Stored* packed = static_cast<Stored*>(plan.workspace);
  claim_units(plan.next, plan.first_step[sequences], [&](int64_t unit) {
    const int64_t s = sequence_of(plan.first_step, unit), blocks = plan.first_block[s + 1] - plan.first_block[s];
    const int64_t step = blocks * steps - (plan.first_step[s + 1] - unit);
    const int64_t block = step / steps, at = step % steps * kKeyStep;
    for (int64_t h = 0; h < heads; ++h) {
      const auto p = problem(s, h);
      const int64_t first = block * kKeyBlock + at, n = min64(kKeyStep, p.keys - first);
      if (n > 0) Block::pack(p, first, n, packed + (plan.first_block[s] * heads + h * blocks + block) * stride, at);
    }
  });
  job_barrier(count);
  Block::open();
  claim_units(plan.next + 1, plan.first_chunk[sequences] * heads, [&](int64_t unit) {
    const int64_t s = sequence_of(plan.first_chunk, unit / heads), first = plan.first_chunk[s] * heads;
    const int64_t chunks = plan.first_chunk[s + 1] - plan.first_chunk[s], h = (unit - first) / chunks;
    const int64_t blocks = plan.first_block[s + 1] - plan.first_block[s];
    const int64_t begin = (chunks - 1 - (unit - first) % chunks) * kUnitRows;
    const auto p = problem(s, h);
    const Stored* keys = packed + (plan.first_block[s] * heads + h * blocks) * stride;
    attend(p, keys, stride, begin, min64(begin + kUnitRows, p.rows));
  });
  Block::close();
}

}  // namespace antiphon::ANTIPHON_ISA
