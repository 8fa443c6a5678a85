// Selecting and committing tokens on the canvas, and remasking them: the CPU kernels. No torch here.
//
// One call handles a whole step: candidates are ranked by (confidence descending, position ascending), a rule says
// how many of them are taken, and the same pass writes the canvas, the trajectory, the mask counts and the list of
// rows that the next step scores.
#pragma once

#include <cstdint>
#include <vector>

#include "../common/select_commit_arguments.h"

namespace mdlm_fast::cpu {

// The slots of each sequence, by canvas position: offsets[b] .. offsets[b + 1] index `slots`, or are the slots
// themselves while `slots` is empty. Rows nearly always come ascending, and then nothing needs to be stored.
struct SequenceSlots {
  std::vector<int32_t> offsets;    // [B + 1]
  std::vector<int32_t> slots;      // [number of rows >= 0] or empty
  int32_t largest_row = -1;        // must lie in the canvas before anything is committed
};

SequenceSlots group_by_sequence(const SelectCommit& args);

// Selects and commits for sequences [begin, end). Sequences are independent, so any split gives the same result.
void select_commit_sequences(const SelectCommit& args, const SequenceSlots& groups, int64_t begin, int64_t end);

// Writes next_rows and num_next_rows; call after every sequence has been committed.
void write_next_rows(const SelectCommit& args);

void remask_sequences(const Remask& args, int64_t begin, int64_t end);

}  // namespace mdlm_fast::cpu
