// Standard Gumbel noise of (seed, step, stream, id), -log(-log u) with u from Philox4x32-10: the formulas of
// kernels/antiphon_kernels/philox.py, operation by operation, so the noise is theirs to the bit. Nothing may be
// contracted or reordered (-ffp-contract=off). Lanes are arrays of fixed length: the compiler makes vectors of them.
#pragma once

#include <cstdint>
#include <cstring>

namespace antiphon::ANTIPHON_ISA {

constexpr int kNoiseLanes = 16;
constexpr float kLargestNoise = 16.636f;  // u < 1 - 2^-24, so no noise exceeds -log(2^-24) = 16.6355...

struct NoiseSource {
  int64_t seed, step, stream;
};

// First word of Philox for counter (id, step, stream, 0), in place of the id. Words stand in 64-bit lanes, upper half
// zero, so that a product and its halves stay in their lane.
inline void philox_words(const NoiseSource& source, uint64_t* words) {
  constexpr uint64_t kLow = 0xFFFFFFFFu;
  uint64_t c1[kNoiseLanes], c2[kNoiseLanes], c3[kNoiseLanes];
  for (int i = 0; i < kNoiseLanes; ++i) {
    c1[i] = static_cast<uint64_t>(source.step) & kLow;
    c2[i] = static_cast<uint64_t>(source.stream) & kLow;
    c3[i] = 0;
  }
  uint32_t k0 = static_cast<uint32_t>(source.seed), k1 = static_cast<uint32_t>(source.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < kNoiseLanes; ++i) {
      const uint64_t first = (words[i] & kLow) * 0xD2511F53u, second = (c2[i] & kLow) * 0xCD9E8D57u;
      words[i] = (second >> 32) ^ c1[i] ^ k0;
      c2[i] = (first >> 32) ^ c3[i] ^ k1;
      c1[i] = second & kLow;
      c3[i] = first & kLow;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// log of positive normal numbers, in place.
inline void natural_log(float* x) {
  int32_t bits[kNoiseLanes], exponents[kNoiseLanes];
  float f[kNoiseLanes];
  std::memcpy(bits, x, sizeof(bits));
  for (int i = 0; i < kNoiseLanes; ++i) {
    exponents[i] = (bits[i] - 0x3F3504F3) >> 23;
    bits[i] -= exponents[i] * (1 << 23);
  }
  std::memcpy(f, bits, sizeof(bits));
  for (int i = 0; i < kNoiseLanes; ++i) {
    const float m = f[i] - 1.0f, exponent = static_cast<float>(exponents[i]), square = m * m;
    float series = m * 7.0376836292e-2f;
    series = (series + -1.1514610310e-1f) * m;
    series = (series + 1.1676998740e-1f) * m;
    series = (series + -1.2420140846e-1f) * m;
    series = (series + 1.4249322787e-1f) * m;
    series = (series + -1.6668057665e-1f) * m;
    series = (series + 2.0000714765e-1f) * m;
    series = (series + -2.4999993993e-1f) * m;
    series = (series + 3.3333331174e-1f) * m * square;
    const float rest = series + exponent * -2.12194440e-4f - square * 0.5f;
    x[i] = (m + rest) + exponent * 0.693359375f;
  }
}

// noise [kNoiseLanes] of as many ids.
inline void gumbel(const NoiseSource& source, const int32_t* ids, float* noise) {
  uint64_t words[kNoiseLanes];
  for (int i = 0; i < kNoiseLanes; ++i) words[i] = static_cast<uint32_t>(ids[i]);
  philox_words(source, words);
  for (int i = 0; i < kNoiseLanes; ++i)
    noise[i] = (static_cast<float>(static_cast<int32_t>(words[i] >> 9)) + 0.5f) * 1.1920928955078125e-07f;
  natural_log(noise);
  for (int i = 0; i < kNoiseLanes; ++i) noise[i] = -noise[i];
  natural_log(noise);
  for (int i = 0; i < kNoiseLanes; ++i) noise[i] = -noise[i];
}

}  // namespace antiphon::ANTIPHON_ISA
