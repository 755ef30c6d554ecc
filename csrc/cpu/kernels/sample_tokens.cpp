// One token per row: penalty window, temperature, top-k, counter-based draw; the rules are those of
// kernels/antiphon_kernels/sample_tokens.py.
//
// All logits of a row are read once, for the largest of every span of kSpan. A penalty only lowers logits, so with
// `reach` penalised ids at least k logits are no smaller than the (k + reach)-th largest of these maxima, or than any
// number below it: spans under it cannot hold one of the k best and are not looked at again. Threads own whole rows; a
// token is found by comparisons alone, in the order of the ids, so nothing depends on the threads or the batch.
#include <cmath>
#include <limits>

#include "gumbel.h"
#include "kernels.h"
#include "simd.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

constexpr int64_t kSpan = 128;
constexpr double kGreedyTemperature = 1e-6;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

struct Candidate {
  float score;
  int32_t id;
};

bool better(Candidate a, Candidate b) { return a.score > b.score || (a.score == b.score && a.id < b.id); }

// The k best of the candidates pushed so far, the worst of them on top (a binary heap).
struct KeepLargest {
  Candidate* heap;
  int64_t k, held;

  bool full() const { return held == k; }
  float floor() const { return full() ? heap[0].score : kLowest; }

  void push(Candidate c) {
    if (held < k) {
      int64_t place = held++;
      for (; place && better(heap[(place - 1) / 2], c); place = (place - 1) / 2) heap[place] = heap[(place - 1) / 2];
      heap[place] = c;
    } else if (better(c, heap[0])) {
      replace_worst(c);
    }
  }

  void replace_worst(Candidate c) {
    int64_t place = 0;
    for (int64_t child = 1; child < k; child = 2 * place + 1) {
      if (child + 1 < k && better(heap[child], heap[child + 1])) ++child;
      if (!better(c, heap[child])) break;
      heap[place] = heap[child];
      place = child;
    }
    heap[place] = c;
  }
};

float float_of_key(uint32_t key) {
  const uint32_t bits = key & 0x80000000u ? key ^ 0x80000000u : ~key;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

// A number that at least n of values [count] are no smaller than, and at most one part in 2^7 below the largest such
// number: its first 16 bits, in the order of the floats, found one by one. -inf if n > count.
float lower_bound_of_largest(const float* values, int64_t count, int64_t n) {
  if (n > count) return kLowest;
  uint32_t key = 0;
  for (uint32_t bit = 1u << 31; bit >= 1u << 16; bit >>= 1) {
    const float candidate = float_of_key(key | bit);
    int32_t reached = 0;
    for (int64_t i = 0; i < count; ++i) reached += values[i] >= candidate;
    if (reached >= n) key |= bit;
  }
  const float bound = float_of_key(key);
  return bound == bound ? bound : kLowest;  // keys below that of -inf are NaN: no value reaches one
}

// x as it would be stored among logits of this type.
float stored(float x, const float*) { return x; }
float stored(float x, const bf16*) { return widen(round_bf16(x)); }

// NaN counts for nothing: `max` returns its second operand where one is NaN.
template <class T>
float largest_of(const T* x, int64_t n) {
  vf best[4];
  for (vf& v : best) v = set1(kLowest);
  int64_t i = 0;
  for (; i + 4 * VF <= n; i += 4 * VF)
    for (int j = 0; j < 4; ++j) best[j] = max(load(x + i + j * VF), best[j]);
  float largest = hmax(max(max(best[0], best[1]), max(best[2], best[3])));
  for (; i < n; ++i) largest = widen(x[i]) > largest ? widen(x[i]) : largest;
  return largest;
}

// One row of logits and what is drawn from it.
template <class T>
struct Row {
  const T* logits;
  int64_t vocabulary, top_k, reach;  // reach: length of the penalty window, 0 for no penalty
  const int32_t* recent;             // [reach]
  float penalty, temperature;
  NoiseSource source;
  float* maxima;                     // [number of spans]

  int64_t spans() const { return (vocabulary + kSpan - 1) / kSpan; }
  int64_t end(int64_t span) const { return min64(vocabulary, (span + 1) * kSpan); }
  bool greedy() const { return static_cast<double>(temperature) <= kGreedyTemperature; }

  // How many ids are kept before the draw; 0 for all.
  int64_t kept() const { return greedy() ? 1 : top_k <= 0 || top_k >= vocabulary ? 0 : top_k; }

  // The logit of an id after penalty.
  float score(int64_t id) const {
    float x = widen(logits[id]);
    int32_t hits = 0;
    for (int64_t i = 0; i < reach; ++i) hits += recent[i] == id;
    if (hits) x = stored(x < 0 ? x * penalty : x / penalty, logits);
    return x == x ? x : kLowest;
  }

  // The k best, lowest ids on ties, into `best`.
  void keep_largest(KeepLargest& best) const {
    const float bound = lower_bound_of_largest(maxima, spans(), best.k + reach);
    for (int64_t s = 0; s < spans(); ++s) {
      if (maxima[s] < bound || (best.full() && maxima[s] <= best.floor())) continue;
      for (int64_t id = s * kSpan; id < end(s); ++id) {
        const float x = widen(logits[id]);
        if (x < bound || (best.full() && !(x > best.floor()))) continue;
        best.push({score(id), static_cast<int32_t>(id)});
      }
    }
  }

  // Draws among kNoiseLanes ids with their scores, of which n count, and the winner so far.
  void draw(const float* scores, const int32_t* ids, int64_t n, Candidate& winner) const {
    float noisy[kNoiseLanes];
    gumbel(source, ids, noisy);
    int32_t rivals = 0;
    for (int i = 0; i < kNoiseLanes; ++i) {
      noisy[i] = scores[i] / temperature + noisy[i];
      rivals += noisy[i] >= winner.score;
    }
    if (!rivals) return;
    for (int64_t i = 0; i < n; ++i)
      if (better({noisy[i], ids[i]}, winner)) winner = {noisy[i], ids[i]};
  }

  int64_t draw_among(const Candidate* candidates, int64_t count) const {
    Candidate winner{kLowest, INT32_MAX};
    for (int64_t first = 0; first < count; first += kNoiseLanes) {
      const int64_t n = min64(kNoiseLanes, count - first);
      float scores[kNoiseLanes] = {};
      int32_t ids[kNoiseLanes] = {};
      for (int64_t i = 0; i < n; ++i) {
        scores[i] = candidates[first + i].score;
        ids[i] = candidates[first + i].id;
      }
      draw(scores, ids, n, winner);
    }
    return winner.id;
  }

  void draw_in_span(int64_t span, Candidate& winner) const {
    float scores[kSpan] = {};
    int32_t ids[kSpan];
    const int64_t first = span * kSpan, n = end(span) - first;
    for (int64_t i = 0; i < kSpan; ++i) ids[i] = static_cast<int32_t>(first + i);
    for (int64_t i = 0; i < n; ++i) {
      const float x = widen(logits[first + i]);
      scores[i] = x == x ? x : kLowest;
    }
    for (int64_t i = 0; i < reach; ++i)
      if (recent[i] >= first && recent[i] < first + n) scores[recent[i] - first] = score(recent[i]);
    for (int64_t at = 0; at < n; at += kNoiseLanes)
      draw(scores + at, ids + at, min64(kNoiseLanes, n - at), winner);
  }

  // Among all ids: a span is left out if the largest noise could not lift its best logit to the best so far.
  int64_t draw_among_all() const {
    int64_t highest = 0;
    for (int64_t s = 1; s < spans(); ++s)
      if (maxima[s] > maxima[highest]) highest = s;
    Candidate winner{kLowest, INT32_MAX};
    draw_in_span(highest, winner);
    for (int64_t s = 0; s < spans(); ++s)
      if (s != highest && maxima[s] / temperature + kLargestNoise >= winner.score) draw_in_span(s, winner);
    return winner.id;
  }

  int64_t token(Candidate* heap) const {
    for (int64_t s = 0; s < spans(); ++s) maxima[s] = largest_of(logits + s * kSpan, end(s) - s * kSpan);
    if (!kept()) return draw_among_all();
    KeepLargest best{heap, kept(), 0};
    keep_largest(best);
    if (greedy()) return heap[0].id;
    return draw_among(heap, best.held);
  }
};

template <class T>
void run(const SampleTokensArgs& a, int index, int count) {
  const Range range = partition(a.num_rows, 1, index, count);
  for (int64_t r = range.begin; r < range.end; ++r) {
    const int64_t slot = a.slots[r], parameters = slot * a.parameter_stride;
    const int64_t length = a.lengths ? a.lengths[r] : a.history_len[slot];
    const float penalty = a.penalty[parameters];
    const int64_t window = a.window[parameters], reach = penalty > 1.0f && length > window ? window : 0;
    Row<T> row{static_cast<const T*>(a.logits) + r * a.logits_stride, a.vocabulary, a.top_k[parameters], reach,
               a.history + slot * a.history_stride + length - reach, penalty, a.temperature[parameters],
               {a.seeds[slot], length, a.stream}, nullptr};
    const int64_t heap_bytes = row.kept() * static_cast<int64_t>(sizeof(Candidate));
    char* memory = static_cast<char*>(scratch(heap_bytes + row.spans() * 4));
    row.maxima = reinterpret_cast<float*>(memory + heap_bytes);
    a.out[r] = row.token(reinterpret_cast<Candidate*>(memory));
  }
}

}  // namespace

void sample_tokens(const SampleTokensArgs& a, int index, int count) {
  a.dtype == DType::f32 ? run<float>(a, index, count) : run<bf16>(a, index, count);
}

}  // namespace antiphon::ANTIPHON_ISA
