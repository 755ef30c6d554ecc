// The step state machine of both streams: forced blanks, delay, ends and limits
// (kernels/antiphon_kernels/advance_streams.py says the rules). Idle rows of a batch may share a slot that is nobody's,
// so every row is read before the state of any is written. A few rows: the first thread does them all.
#include "kernels.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

enum Stop : int64_t { kRunning = 0, kTextEos = 1, kMsgEnd = 2, kMediaEnd = 3, kLimit = 4 };

struct Next {
  int64_t length, stop;
  bool text_ended;
};

Stop reason(const AdvanceStreamsArgs& a, int64_t slot, int64_t audio, bool text_ended, int64_t length) {
  if (!a.state.speaks[slot] && text_ended) return kTextEos;
  if (a.state.speaks[slot] && audio == a.ids.msg_end) return kMsgEnd;
  if (a.state.speaks[slot] && audio == a.ids.media_end) return kMediaEnd;
  return length >= a.state.limit[slot] ? kLimit : kRunning;
}

Next read(const AdvanceStreamsArgs& a, int64_t r) {
  const StreamState& s = a.state;
  const int64_t slot = a.slots[r], step = s.history_len[slot];
  const int64_t text = s.text_ended[slot] ? a.ids.text_blank : a.text[r];
  const int64_t audio = step < a.ids.delay || !s.speaks[slot] ? a.ids.text_blank : a.audio[r];
  const bool ended = s.text_ended[slot] || text == a.ids.text_eos;
  s.text_history[slot * s.capacity + step] = static_cast<int32_t>(text);
  s.audio_history[slot * s.capacity + step] = static_cast<int32_t>(audio);
  a.text_out[r] = text;
  a.audio_out[r] = audio;
  return {step + 1, reason(a, slot, audio, ended, step + 1), ended};
}

}  // namespace

void advance_streams(const AdvanceStreamsArgs& a, int index, int) {
  if (index) return;
  Next* next = static_cast<Next*>(scratch(a.num_rows * static_cast<int64_t>(sizeof(Next))));
  for (int64_t r = 0; r < a.num_rows; ++r) next[r] = read(a, r);
  for (int64_t r = 0; r < a.num_rows; ++r) {
    const int64_t slot = a.slots[r];
    a.state.history_len[slot] = next[r].length;
    a.state.stop[slot] = next[r].stop;
    a.state.text_ended[slot] = next[r].text_ended;
  }
}

}  // namespace antiphon::ANTIPHON_ISA
