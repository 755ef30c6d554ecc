// Compact weights (linear_kernels.h) as the bfloat16 numbers that they stand for.
#pragma once

#include <utility>

#include "kernels.h"
#include "simd.h"

namespace antiphon::ANTIPHON_ISA {

inline int64_t compact_row_bytes(int64_t k) { return k / kCompactGroup * kCompactGroupBytes; }

// The upper bytes of a matrix by code.
#if defined(__AVX512F__)
struct UpperBytes {
  explicit UpperBytes(const int32_t* codes)
      : bytes(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)))) {}
  // Of the codes in the low nibbles; the high ones do not matter.
  __m512i of(__m512i nibbles) const {
    return _mm512_shuffle_epi8(bytes, _mm512_and_si512(nibbles, _mm512_set1_epi8(15)));
  }
  __m512i bytes;
};

// 128 columns to four runs of 32, `step` elements apart.
inline void widen_group(const uint8_t* group, const UpperBytes& upper, bf16* out, int64_t step) {
  const __m512i codes = _mm512_loadu_si512(group + kCompactGroup);
  for (int64_t half = 0; half < 2; ++half) {
    const __m512i low = _mm512_loadu_si512(group + 64 * half);
    const __m512i high = upper.of(half ? _mm512_srli_epi16(codes, 4) : codes);
    _mm512_storeu_si512(out + 2 * half * step, _mm512_unpacklo_epi8(low, high));
    _mm512_storeu_si512(out + (2 * half + 1) * step, _mm512_unpackhi_epi8(low, high));
  }
}
#elif defined(__AVX2__)
struct UpperBytes {
  explicit UpperBytes(const int32_t* codes)
      : bytes(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)))) {}
  __m256i of(__m256i nibbles) const {
    return _mm256_shuffle_epi8(bytes, _mm256_and_si256(nibbles, _mm256_set1_epi8(15)));
  }
  __m256i bytes;
};

inline void widen_group(const uint8_t* group, const UpperBytes& upper, bf16* out, int64_t step) {
  const auto vector = [&](int64_t at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group + at)); };
  for (int64_t quarter = 0; quarter < 4; ++quarter) {  // 32 lower bytes: 16 columns of each of two runs
    const int64_t half = quarter / 2, column = quarter % 2 * 16;
    const __m256i low = vector(32 * quarter), codes = vector(kCompactGroup + quarter % 2 * 32);
    const __m256i high = upper.of(half ? _mm256_srli_epi16(codes, 4) : codes);
    bf16* first = out + 2 * half * step + column;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(first), _mm256_unpacklo_epi8(low, high));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(first + step), _mm256_unpackhi_epi8(low, high));
  }
}
#else
struct UpperBytes {
  explicit UpperBytes(const int32_t* codes) { std::memcpy(bytes, codes, 16); }
  uint8_t bytes[16];
};

inline void widen_group(const uint8_t* group, const UpperBytes& upper, bf16* out, int64_t step) {
  for (int64_t i = 0; i < kCompactGroup; ++i) {
    const int64_t half = i / 64, lane = i % 64 / 16, byte = i % 16;
    const int code = group[kCompactGroup + i % 64] >> (4 * half) & 15;
    out[(2 * half + byte / 8) * step + 8 * lane + byte % 8] = {
        static_cast<uint16_t>(upper.bytes[code] << 8 | group[i])};
  }
}
#endif

inline bf16 with_upper_byte(bf16 x, int32_t escape) {
  return {static_cast<uint16_t>((x.bits & 0xff) | (escape & 0xff) << 8)};
}

// Columns [begin, end), whole groups, of a row whose bytes start at `bytes`; `escapes` are the row's from `begin` on and
// become those from `end` on, up to `last`. before() asks for what is read later.
template <class Before>
inline void widen_columns(const uint8_t* bytes, const UpperBytes& upper, int64_t begin, int64_t end, const int32_t*& escapes,
                          const int32_t* last, bf16* out, const Before& before) {
  bytes += compact_row_bytes(begin);
  for (int64_t i = 0; i < end - begin; i += kCompactGroup, bytes += kCompactGroupBytes) {
    before(bytes);
    widen_group(bytes, upper, out + i, 32);
  }
  for (; escapes < last && *escapes >> 8 < end; ++escapes) {
    bf16& x = out[(*escapes >> 8) - begin];
    x = with_upper_byte(x, *escapes);
  }
}

// The escapes of row `row` of all branches' rows: from the first to the second.
inline std::pair<const int32_t*, const int32_t*> escapes_of(const int32_t* codes, int64_t row) {
  const int32_t* starts = codes + kCompactTableWords;
  return {codes + starts[row], codes + starts[row + 1]};
}

// Row `row` of all branches' rows, whose bytes start at `bytes`.
inline void widen_row(const uint8_t* bytes, const int32_t* codes, const UpperBytes& upper, int64_t row, int64_t k,
                      bf16* out) {
  auto [escapes, last] = escapes_of(codes, row);
  widen_columns(bytes, upper, 0, k, escapes, last, out, [](const uint8_t* group) {
    for (int64_t i = 1024; i < 1024 + kCompactGroupBytes; i += 64) prefetch(group + i);
  });
}

}  // namespace antiphon::ANTIPHON_ISA
