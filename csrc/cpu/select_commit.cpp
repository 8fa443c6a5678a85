#include "select_commit.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "../common/philox.h"
#include "top_keys.h"

namespace mdlm_fast::cpu {
namespace {

// One sequence's n candidates in canvas order, and which of them the rule takes.
struct Candidates {
  std::vector<uint32_t> keys;      // [n], what the rule ranks on, as ranking_key
  std::vector<int32_t> slots;      // [n], index into rows
  std::vector<int32_t> order;      // [n], best first (only for the rules that walk down the ranking)
  std::vector<int32_t> chosen;     // indices into keys and slots

  int64_t size() const { return static_cast<int64_t>(keys.size()); }
};

bool is_eos(const SelectCommit& args, int64_t token) {
  return std::find(args.eos_ids, args.eos_ids + args.num_eos_ids, token) != args.eos_ids + args.num_eos_ids;
}

double position_uniform(const SelectCommit& args, int64_t b, int32_t slot) {
  return philox_uniform(static_cast<uint64_t>(args.seeds[b]), static_cast<uint32_t>(args.row_position[slot]),
                        static_cast<uint32_t>(args.step[b * args.step_stride]), kPositionChoiceStream);
}

// Early rejection of EOS multiplies a probability by gamma: in log space that adds log gamma. gamma = 0 gives -inf,
// which ranks last and is still a candidate. Sampling positions without replacement adds Gumbel noise.
float ranking(const SelectCommit& args, int64_t b, int32_t slot) {
  float value = args.confidence[slot];
  if (args.discount != Discount::kNone && is_eos(args, args.token[slot])) {
    value = args.discount == Discount::kLog ? value + std::log(args.gamma[b]) : value * args.gamma[b];
  }
  if (args.position_temperature > 0.0) {
    const double gumbel = -std::log(-std::log(position_uniform(args, b, slot)));
    value = static_cast<float>(static_cast<double>(value) / args.position_temperature + gumbel);
  }
  return value;
}

// Writes the slots and keys of those that are candidates, in order; returns how many. A template, so that the loop over
// ascending rows without a discount has no call and no branch in it.
template <class SlotOf, class KeyOf>
int64_t pack_candidates(const SelectCommit& args, int64_t begin, int64_t end, SlotOf slot_of, KeyOf key_of,
                        int32_t* __restrict slots, uint32_t* __restrict keys) {
  const int32_t* const rows = args.rows;
  const int64_t* const token = args.token;
  const uint8_t* const masked = args.masked;
  int64_t n = 0;
  for (int64_t i = begin; i < end; ++i) {
    const int32_t slot = slot_of(i);
    slots[n] = slot;
    keys[n] = key_of(slot);
    n += (token[slot] >= 0) & masked[rows[slot]];
  }
  return n;
}

void gather_candidates(const SelectCommit& args, const SequenceSlots& groups, int64_t b, Candidates& c) {
  const int64_t begin = groups.offsets[b], end = groups.offsets[b + 1];
  c.chosen.clear();
  c.slots.resize(end - begin);
  c.keys.resize(end - begin);
  int32_t* const slots = c.slots.data();
  uint32_t* const keys = c.keys.data();
  const bool ascending = groups.slots.empty();
  const auto same = [](int64_t i) { return static_cast<int32_t>(i); };
  const auto stored = [&](int64_t i) { return ascending ? same(i) : groups.slots[i]; };
  const auto plain_key = [confidence = args.confidence](int32_t slot) { return ranking_key(confidence[slot]); };
  const auto key = [&](int32_t slot) { return ranking_key(ranking(args, b, slot)); };
  const bool plain = args.discount == Discount::kNone && !(args.position_temperature > 0.0);
  const int64_t n = plain && ascending ? pack_candidates(args, begin, end, same, plain_key, slots, keys)
                                       : pack_candidates(args, begin, end, stored, key, slots, keys);
  c.slots.resize(n);
  c.keys.resize(n);
}

void choose_best(Candidates& c, int64_t k) {
  k = std::min(k, c.size());
  c.chosen.clear();
  if (k <= 0) return;
  const uint32_t* const keys = c.keys.data();
  const TopKeys top = top_keys(keys, c.size(), k);
  c.chosen.resize(k);
  int32_t* __restrict const chosen = c.chosen.data();
  // Keys above the bound are all taken; those equal to it fill up from the left.
  int64_t ties = top.ties;
  for (int64_t i = 0, taken = 0; taken < k; ++i) {
    if (keys[i] < top.bound || (keys[i] == top.bound && ties-- <= 0)) continue;
    chosen[taken++] = static_cast<int32_t>(i);
  }
}

int64_t choose_at_least(Candidates& c, uint32_t bound) {
  for (int64_t i = 0; i < c.size(); ++i) {
    if (c.keys[i] >= bound) c.chosen.push_back(static_cast<int32_t>(i));
  }
  return static_cast<int64_t>(c.chosen.size());
}

template <class Before>
void sort_candidates(Candidates& c, Before before) {
  c.order.resize(c.keys.size());
  std::iota(c.order.begin(), c.order.end(), 0);
  std::stable_sort(c.order.begin(), c.order.end(), before);
}

// Fast-dLLM's factor rule: rank r is kept while its probability is at least 1 - f / (r + 1).
void choose_by_factor(Candidates& c, double factor) {
  sort_candidates(c, [&](int32_t a, int32_t b) { return c.keys[a] > c.keys[b]; });
  for (int64_t r = 1; r <= c.size(); ++r) {
    const int32_t i = c.order[r - 1];
    const double probability = std::exp(static_cast<double>(ranking_value(c.keys[i])));
    if (r > 1 && probability < 1.0 - factor / (static_cast<double>(r) + 1.0)) break;
    c.chosen.push_back(i);
  }
}

// Entropy-bounded unmasking: the joint entropy of what is taken, without its last token, stays within the bound.
void choose_by_entropy(const SelectCommit& args, Candidates& c, double bound) {
  const auto entropy = [&](int32_t i) { return args.entropy[c.slots[i]]; };
  sort_candidates(c, [&](int32_t a, int32_t b) { return entropy(a) < entropy(b); });
  double before = 0.0;
  for (int64_t r = 0; r < c.size() && (r == 0 || before <= bound); ++r) {
    c.chosen.push_back(c.order[r]);
    before += static_cast<double>(entropy(c.order[r]));
  }
}

void choose(const SelectCommit& args, int64_t b, Candidates& c) {
  if (c.size() == 0) return;
  switch (args.rule) {
    case Rule::kQuota:
      choose_best(c, args.quota[b]);
      break;
    case Rule::kThreshold:
      if (choose_at_least(c, ranking_key(args.threshold[b])) == 0) choose_best(c, 1);
      break;
    case Rule::kQuotaThreshold:  // strictly above, so at least the next key
      if (choose_at_least(c, ranking_key(args.threshold[b]) + 1) < args.quota[b]) choose_best(c, args.quota[b]);
      break;
    case Rule::kFactor:
      choose_by_factor(c, args.threshold[b]);
      break;
    case Rule::kEntropyBound:
      choose_by_entropy(args, c, args.threshold[b]);
      break;
    case Rule::kOrigin:
      for (int64_t i = 0; i < c.size(); ++i) {
        if (position_uniform(args, b, c.slots[i]) < args.threshold[b]) c.chosen.push_back(static_cast<int32_t>(i));
      }
      break;
  }
}

void commit(const SelectCommit& args, int64_t b, const Candidates& c) {
  const auto step = static_cast<int16_t>(args.step[b * args.step_stride]);
  for (const int32_t i : c.chosen) {
    const int32_t slot = c.slots[i], row = args.rows[slot];
    args.canvas[row] = args.token[slot];
    args.masked[row] = 0;
    if (args.commit_step) args.commit_step[row] = step;
    if (args.commit_logp) args.commit_logp[row] = args.logp[slot];
    if (args.commit_logp_tempered) args.commit_logp_tempered[row] = args.logp_tempered[slot];
    if (args.commit_confidence) args.commit_confidence[row] = args.confidence[slot];
  }
}

void count_masks(const uint8_t* masked, int64_t length, int64_t b, int32_t* masks_left, uint8_t* done) {
  int32_t count = 0;
  for (int64_t l = 0; l < length; ++l) count += masked[l];
  if (masks_left) masks_left[b] = count;
  if (done) done[b] = count == 0;
}

}  // namespace

SequenceSlots group_by_sequence(const SelectCommit& args) {
  SequenceSlots groups;
  groups.offsets.resize(args.num_sequences + 1);
  const int32_t* end = args.rows + args.capacity;
  while (end != args.rows && end[-1] < 0) --end;
  const int64_t last = end - args.rows - 1;
  int32_t descents = last >= 0 && args.rows[0] < 0;
  for (int64_t i = 0; i < last; ++i) descents |= args.rows[i] >= args.rows[i + 1];
  const bool ascending = descents == 0;
  if (!ascending) {
    for (const int32_t* row = args.rows; row != end; ++row) {
      if (*row >= 0) groups.slots.push_back(static_cast<int32_t>(row - args.rows));
    }
    std::sort(groups.slots.begin(), groups.slots.end(),
              [&](int32_t a, int32_t b) { return args.rows[a] < args.rows[b]; });
  }
  const int64_t n = ascending ? end - args.rows : static_cast<int64_t>(groups.slots.size());
  const auto row_of = [&](int64_t i) { return ascending ? args.rows[i] : args.rows[groups.slots[i]]; };
  for (int64_t b = 0, i = 0; b <= args.num_sequences; ++b) {
    // The first candidate at or behind the sequence's first position, by bisection.
    int64_t high = n;
    while (i < high) {
      const int64_t middle = i + (high - i) / 2;
      if (row_of(middle) < b * args.length) i = middle + 1; else high = middle;
    }
    groups.offsets[b] = static_cast<int32_t>(i);
  }
  groups.largest_row = n > 0 ? row_of(n - 1) : -1;
  return groups;
}

void select_commit_sequences(const SelectCommit& args, const SequenceSlots& groups, int64_t begin, int64_t end) {
  Candidates candidates;
  for (int64_t b = begin; b < end; ++b) {
    gather_candidates(args, groups, b, candidates);
    choose(args, b, candidates);
    commit(args, b, candidates);
    count_masks(args.masked + b * args.length, args.length, b, args.masks_left, args.done);
  }
}

void write_next_rows(const SelectCommit& args) {
  if (!args.next_rows && !args.num_next_rows) return;
  const int32_t* const rows = args.rows;
  const uint8_t* const masked = args.masked;
  int32_t* __restrict const next_rows = args.next_rows;
  // A padding row looks at position 0 and does not count: cheaper than a branch.
  const int64_t slots = args.num_sequences * args.length > 0 ? args.capacity : 0;
  const auto still_masked = [=](int32_t row) { return masked[row < 0 ? 0 : row] & (row >= 0); };
  int64_t count = 0;
  for (int64_t slot = 0; slot < slots; ++slot) {
    if (next_rows) next_rows[count] = rows[slot];
    count += still_masked(rows[slot]);
  }
  if (next_rows) std::fill(next_rows + count, next_rows + args.capacity, -1);
  if (args.num_next_rows) *args.num_next_rows = static_cast<int32_t>(count);
}

void remask_sequences(const Remask& args, int64_t begin, int64_t end) {
  std::vector<uint32_t> keys(args.length);
  for (int64_t b = begin; b < end; ++b) {
    const int64_t base = b * args.length;
    int64_t candidates = 0;
    for (int64_t l = 0; l < args.length; ++l) {
      const bool candidate = args.scope[base + l] && !args.masked[base + l];
      // The lowest confidence goes first, so the ranking is reversed; ~key is never 0 either.
      keys[l] = candidate ? ~ranking_key(args.running[base + l]) : 0;
      candidates += candidate;
    }
    const int64_t count = std::min<int64_t>(args.count[b], candidates);
    if (count > 0) {
      const TopKeys top = top_keys(keys.data(), args.length, count);
      int64_t ties = top.ties;
      for (int64_t l = args.length - 1; l >= 0; --l) {
        const bool tied = keys[l] == top.bound && ties > 0;
        if (keys[l] <= top.bound && !tied) continue;
        ties -= tied;
        args.canvas[base + l] = args.mask_id;
        args.masked[base + l] = 1;
        if (args.commit_step) args.commit_step[base + l] = -1;
      }
    }
    count_masks(args.masked + base, args.length, b, args.masks_left, args.done);
  }
}

}  // namespace mdlm_fast::cpu
