// Compact weights from plain ones and back; linear_kernels.h says how they lie. Threads own ranges of rows.
#include "compact_rows.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

constexpr int kCodes = 16;
constexpr uint8_t kEscape = kCodes;  // in place of a code

// 128 weights by column.
struct Group {
  uint8_t lower[kCompactGroup], upper[kCompactGroup], code[kCompactGroup];
};

// Loops that a compiler makes vectors of.
inline void split(const bf16* w, const int32_t* codes, Group& group) {
  uint8_t table[kCodes];
  std::memcpy(table, codes, sizeof(table));
  for (int64_t i = 0; i < kCompactGroup; ++i) {
    group.lower[i] = static_cast<uint8_t>(w[i].bits);
    group.upper[i] = static_cast<uint8_t>(w[i].bits >> 8);
    group.code[i] = kEscape;
  }
  for (int code = 0; code < kCodes; ++code)
    for (int64_t i = 0; i < kCompactGroup; ++i)
      group.code[i] = group.upper[i] == table[code] ? static_cast<uint8_t>(code) : group.code[i];
}

// Bytes by column → half by half, in lanes of 8 and 8 columns.
inline void to_lanes(const uint8_t* columns, uint8_t* out) {
  for (int64_t half = 0; half < kCompactGroup; half += 64)
    for (int64_t lane = 0; lane < 4; ++lane, out += 16) {
      std::memcpy(out, columns + half + 8 * lane, 8);
      std::memcpy(out + 8, columns + half + 32 + 8 * lane, 8);
    }
}

}  // namespace

void compact_histogram(const CompactHistogramArgs& a, int index, int count) {
  const Range range = partition(a.rows, 1, index, count);
  int64_t counts[4][256] = {};  // neighbours are often alike, and a counter waits for its last increment
  for (int64_t i = range.begin * a.k; i < range.end * a.k; ++i) ++counts[i % 4][a.weight[i].bits >> 8];
  for (int byte = 0; byte < 256; ++byte)
    for (const auto& part : counts) a.counts[index][byte] += part[byte];
}

void compact_count(const CompactPackArgs& a, int index, int count) {
  const Range range = partition(a.rows, 1, index, count);
  Group group;
  for (int64_t row = range.begin; row < range.end; ++row) {
    int32_t escapes = 0;
    for (int64_t i = 0; i < a.k; i += kCompactGroup) {
      split(a.weight + row * a.k + i, a.codes, group);
      for (uint8_t code : group.code) escapes += code == kEscape;
    }
    a.codes[kCompactTableWords + row + 1] = escapes;
  }
}

void compact_pack(const CompactPackArgs& a, int index, int count) {
  const Range range = partition(a.rows, 1, index, count);
  Group group;
  for (int64_t row = range.begin; row < range.end; ++row) {
    uint8_t* out = a.out + row * compact_row_bytes(a.k);
    int32_t* escape = a.codes + a.codes[kCompactTableWords + row];
    const int32_t* last = a.codes + a.codes[kCompactTableWords + row + 1];
    for (int64_t begin = 0; begin < a.k; begin += kCompactGroup, out += kCompactGroupBytes) {
      split(a.weight + row * a.k + begin, a.codes, group);
      for (int64_t i = 0; escape < last && i < kCompactGroup; ++i)
        if (group.code[i] == kEscape) {
          *escape++ = static_cast<int32_t>((begin + i) << 8 | group.upper[i]);
          group.code[i] = 0;
        }
      uint8_t code[kCompactGroup];
      to_lanes(group.lower, out);
      to_lanes(group.code, code);
      for (int64_t i = 0; i < 64; ++i)
        out[kCompactGroup + i] = static_cast<uint8_t>(code[i] | code[64 + i] << 4);
    }
  }
}

void compact_widen(const CompactWidenArgs& a, int index, int count) {
  const UpperBytes upper(a.codes);
  const Range range = partition(a.rows, 1, index, count);
  for (int64_t row = range.begin; row < range.end; ++row)
    widen_row(a.weight + row * compact_row_bytes(a.k), a.codes, upper, row, a.k, a.out + row * a.k);
}

}  // namespace antiphon::ANTIPHON_ISA
