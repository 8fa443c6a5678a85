// Binds select_commit_ and remask_ for CPU tensors.
#include <algorithm>

#include "select_commit_arguments.h"

#include "../cpu/select_commit.h"

namespace mdlm_fast {
namespace {

// Sequences a thread takes at least. Two threads save some 50 us on 65,536 positions, and where another program has the
// second core, waiting for it costs milliseconds.
int64_t sequences_per_task(int64_t length) {
  return std::max<int64_t>(1, (int64_t{1} << 16) / std::max<int64_t>(1, length));
}

void run_select_commit(const SelectCommit& args, const Tensor&) {
  const int64_t cells = args.num_sequences * args.length;
  const cpu::SequenceSlots groups = cpu::group_by_sequence(args);
  STD_TORCH_CHECK(groups.largest_row < cells, "mdlm_fast: rows holds ", groups.largest_row, ", outside a canvas of ",
                  cells, " positions");
  const int64_t grain = sequences_per_task(args.length);
  torch::stable::parallel_for(0, args.num_sequences, grain, [&](int64_t begin, int64_t end) {
    cpu::select_commit_sequences(args, groups, begin, end);
  });
  cpu::write_next_rows(args);
}

void run_remask(const Remask& args, const Tensor&) {
  const int64_t grain = sequences_per_task(args.length);
  torch::stable::parallel_for(0, args.num_sequences, grain, [&](int64_t begin, int64_t end) {
    cpu::remask_sequences(args, begin, end);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mdlm_fast_cpp, m) {
  m.def(kSelectCommitSchema);
  m.def(kRemaskSchema);
}

STABLE_TORCH_LIBRARY_IMPL(mdlm_fast_cpp, CPU, m) {
  m.impl("select_commit_", TORCH_BOX(&select_commit<run_select_commit>));
  m.impl("remask_", TORCH_BOX(&remask<run_remask>));
}

}  // namespace mdlm_fast
