// What a decode step reads, from the requests' state (kernels/antiphon_kernels/decode_inputs.py has the formulas). The
// spare slot's own state is read and not reset here.
#include "kernels.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

// Where a row reads and writes in one group of pages: trunk, text branch, audio branch.
void place(const DecodeInputsArgs& a, int64_t group, int64_t r, int64_t position, bool used) {
  const int64_t at = group * a.num_rows + r;
  const int64_t page = used ? a.tables[at * a.max_pages + position / a.page_size] : a.spare[group];
  a.cache[at] = page * a.page_size + (used ? position % a.page_size : 0);
  a.seq_lens[at] = used ? static_cast<int32_t>(position + 1) : 1;
}

void row(const DecodeInputsArgs& a, int64_t r) {
  const int64_t slot = a.slots[r];
  const bool live = slot != a.last && a.stop[slot] == 0;
  const int64_t length = live ? a.history_len[slot] : 1, newest = slot * a.capacity + length - 1;
  const int64_t position = live ? a.base[r] + length : 0;
  a.own[r] = live ? slot : a.last;
  a.text[r] = live ? a.text_history[newest] : a.blank;
  a.audio[r] = live ? a.audio_history[newest] : a.blank;
  a.positions[r] = a.positions[a.num_rows + r] = position;
  place(a, 0, r, position, live);
  place(a, 1, r, position, live && a.runs[r]);
  place(a, 2, r, position, live && a.runs[a.num_rows + r]);
}

}  // namespace

void decode_inputs(const DecodeInputsArgs& a, int index, int count) {
  const Range range = partition(a.num_rows, 1, index, count);
  for (int64_t r = range.begin; r < range.end; ++r) row(a, r);
}

}  // namespace antiphon::ANTIPHON_ISA
