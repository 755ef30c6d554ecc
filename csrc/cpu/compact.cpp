#include "compact.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

#include "kernels.h"
#include "thread_pool.h"

namespace antiphon {
namespace {

constexpr int kBytes = 256, kCodes = 16;

// The most frequent upper bytes, the smaller one first among equals.
void choose_table(const bf16* weight, int64_t rows, int64_t k, int32_t* codes) {
  std::vector<int64_t> counts(kMaxThreads * kBytes);
  auto* threads = reinterpret_cast<int64_t(*)[kBytes]>(counts.data());
  parallel([&](int index, int count) { kernels().compact_histogram({weight, rows, k, threads}, index, count); });
  for (int64_t i = kBytes; i < kMaxThreads * kBytes; ++i) counts[i % kBytes] += counts[i];
  std::array<uint8_t, kBytes> order;
  std::iota(order.begin(), order.end(), uint8_t{0});
  std::stable_sort(order.begin(), order.end(), [&](uint8_t a, uint8_t b) { return counts[a] > counts[b]; });
  std::copy_n(order.begin(), kCodes, reinterpret_cast<uint8_t*>(codes));
}

}  // namespace

int64_t compact_count(const bf16* weight, int64_t rows, int64_t k, int32_t* codes) {
  choose_table(weight, rows, k, codes);
  parallel([&](int index, int count) { kernels().compact_count({weight, rows, k, codes, nullptr}, index, count); });
  int32_t* starts = codes + kCompactTableWords;
  starts[0] = static_cast<int32_t>(kCompactTableWords + rows + 1);
  std::partial_sum(starts, starts + rows + 1, starts);
  return starts[rows] - starts[0];
}

void compact_pack(const bf16* weight, int64_t rows, int64_t k, int32_t* codes, uint8_t* out) {
  parallel([&](int index, int count) { kernels().compact_pack({weight, rows, k, codes, out}, index, count); });
}

}  // namespace antiphon
