// How many pairs a draft proposes before the model looks at them: a step of the draft that is not accepted was in vain,
// a round that ends where everything was foreseen came too early.
#pragma once

#include <algorithm>
#include <cstdint>

namespace antiphon {

constexpr int64_t kFirstDraft = 4;    // of a slot that nobody used yet
constexpr int64_t kLongestDraft = 7;  // two requests then fill a step of 16 rows

// The length after a round in which `accepted` of `drafted` pairs were right: one more after a round without a mistake,
// else as far as it went.
inline int64_t next_draft_length(int64_t length, int64_t drafted, int64_t accepted) {
  if (drafted == 0) return length;
  return accepted == drafted ? std::min(length + 1, kLongestDraft) : accepted + 1;
}

}  // namespace antiphon
