#include "compact.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

#include "linear_kernels.h"
#include "thread_pool.h"

namespace antiphon {
namespace {

constexpr int kBytes = 256, kCodes = 16;
constexpr uint8_t kEscape = kCodes;  // what code_of_byte says of a byte that has no code

using Counts = std::array<int64_t, kBytes>;

inline uint8_t upper(bf16 x) { return static_cast<uint8_t>(x.bits >> 8); }

// f(row) for all rows, shared out among threads.
template <class F>
void for_rows(int64_t rows, const F& f) {
  parallel([&](int index, int count) {
    const Range range = partition(rows, 1, index, count);
    for (int64_t row = range.begin; row < range.end; ++row) f(row, index);
  });
}

// How often each upper byte is there.
Counts histogram(const bf16* weight, int64_t rows, int64_t k) {
  std::vector<Counts> threads(kMaxThreads, Counts{});
  for_rows(rows, [&](int64_t row, int thread) {
    int64_t counts[4][kBytes] = {};  // neighbours are often alike, and a counter waits for its last increment
    const bf16* w = weight + row * k;
    for (int64_t i = 0; i < k; ++i) ++counts[i % 4][upper(w[i])];
    for (int b = 0; b < kBytes; ++b) threads[thread][b] += counts[0][b] + counts[1][b] + counts[2][b] + counts[3][b];
  });
  Counts total{};
  for (const Counts& counts : threads)
    for (int b = 0; b < kBytes; ++b) total[b] += counts[b];
  return total;
}

// The most frequent bytes, the smaller one first among equals.
void choose_table(const Counts& counts, uint8_t* table) {
  std::array<uint8_t, kBytes> order;
  std::iota(order.begin(), order.end(), uint8_t{0});
  std::stable_sort(order.begin(), order.end(), [&](uint8_t a, uint8_t b) { return counts[a] > counts[b]; });
  std::copy_n(order.begin(), kCodes, table);
}

std::array<uint8_t, kBytes> codes_of_bytes(const int32_t* codes) {
  std::array<uint8_t, kBytes> found;
  found.fill(kEscape);
  for (int code = 0; code < kCodes; ++code) found[reinterpret_cast<const uint8_t*>(codes)[code]] = code;
  return found;
}

// Column whose lower byte is byte i of its group.
constexpr int64_t column_of(int64_t i) { return i / 64 * 64 + i % 16 / 8 * 32 + i % 64 / 16 * 8 + i % 8; }

}  // namespace

int64_t compact_count(const bf16* weight, int64_t rows, int64_t k, int32_t* codes) {
  choose_table(histogram(weight, rows, k), reinterpret_cast<uint8_t*>(codes));
  const auto code_of = codes_of_bytes(codes);
  int32_t* starts = codes + kCompactTableWords;
  for_rows(rows, [&](int64_t row, int) {
    const bf16* w = weight + row * k;
    starts[row + 1] = static_cast<int32_t>(
        std::count_if(w, w + k, [&](bf16 x) { return code_of[upper(x)] == kEscape; }));
  });
  starts[0] = static_cast<int32_t>(kCompactTableWords + rows + 1);
  std::partial_sum(starts, starts + rows + 1, starts);
  return starts[rows] - starts[0];
}

void compact_pack(const bf16* weight, int64_t rows, int64_t k, int32_t* codes, uint8_t* out) {
  const auto code_of = codes_of_bytes(codes);
  for_rows(rows, [&](int64_t row, int) {
    const bf16* w = weight + row * k;
    uint8_t* group = out + row * (k / kCompactGroup * kCompactGroupBytes);
    int32_t* escape = codes + codes[kCompactTableWords + row];
    for (int64_t begin = 0; begin < k; begin += kCompactGroup, w += kCompactGroup, group += kCompactGroupBytes) {
      uint8_t found[kCompactGroup];
      for (int64_t i = 0; i < kCompactGroup; ++i) found[i] = code_of[upper(w[i])];
      for (int64_t i = 0; i < kCompactGroup; ++i)
        if (found[i] == kEscape) {
          *escape++ = static_cast<int32_t>((begin + i) << 8 | upper(w[i]));
          found[i] = 0;
        }
      for (int64_t i = 0; i < kCompactGroup; ++i) group[i] = static_cast<uint8_t>(w[column_of(i)].bits);
      for (int64_t i = 0; i < 64; ++i)
        group[kCompactGroup + i] = found[column_of(i)] | static_cast<uint8_t>(found[column_of(64 + i)] << 4);
    }
  });
}

}  // namespace antiphon
