// Rank d receives in round r its rows [r * capacity, (r + 1) * capacity) in (source, token) order.
#include "parallel/dispatch_plan.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "ops/core/check.h"

namespace pesc {
namespace {

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

int64_t total(std::span<const int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

// The home pairs sent in one round: to each rank a run of its pairs, packed one run after the other.
class RoundPairs {
 public:
  RoundPairs(const DispatchPlan& plan, int round) {
    int64_t first = 0;
    for (int d = 0; d < plan.ep(); ++d) {
      int64_t begin = first;
      for (int r = 0; r < round; ++r) begin += plan.sends(r)[at(d)];
      const int64_t rows = plan.sends(round)[at(d)];
      runs_.push_back({begin, begin + rows, packed_});
      packed_ += rows;
      first += plan.send_rows[at(d)];
    }
    whole_ = packed_ == first;
  }

  // The packed row of `pair`, -1 when it travels in another round.
  [[nodiscard]] int64_t packed_row(int64_t pair) const {
    if (whole_) return pair;
    for (const Run& run : runs_)
      if (run.begin <= pair && pair < run.end) return run.packed + pair - run.begin;
    return -1;
  }
  // Appends the home token of every packed row.
  void append_tokens(const DispatchPlan& plan, std::vector<int32_t>& to) const {
    for (const Run& run : runs_)
      to.insert(to.end(), plan.pair_token.begin() + run.begin, plan.pair_token.begin() + run.end);
  }
  [[nodiscard]] int64_t packed() const { return packed_; }

 private:
  struct Run {
    int64_t begin, end;  // pairs
    int64_t packed;      // the packed row of `begin`
  };
  std::vector<Run> runs_;
  int64_t packed_ = 0;
  bool whole_ = false;
};

ExpertGroups group(std::span<const int32_t> experts, int64_t local_experts, int64_t top_k) {
  ExpertGroups groups;
  groups.offsets.assign(at(local_experts + 1), 0);
  for (const int32_t e : experts)
    if (e >= 0) ++groups.offsets[at(e + 1)];
  std::partial_sum(groups.offsets.begin(), groups.offsets.end(), groups.offsets.begin());
  groups.row.resize(at(groups.offsets.back()));
  groups.choice.resize(groups.row.size());
  std::vector<int64_t> next(groups.offsets.begin(), groups.offsets.end() - 1);
  for (size_t choice = 0; choice < experts.size(); ++choice) {
    if (experts[choice] < 0) continue;
    const auto i = at(next[at(experts[choice])]++);
    groups.row[i] = static_cast<int32_t>(static_cast<int64_t>(choice) / top_k);
    groups.choice[i] = static_cast<int32_t>(choice);
  }
  return groups;
}

}  // namespace

int64_t DispatchPlan::received() const {
  return total(recv_rows);
}
int64_t DispatchPlan::received(int round) const {
  return total(receives(round));
}
std::span<const int64_t> DispatchPlan::sends(int round) const {
  PESC_CHECK(0 <= round && round < rounds, "round ", round, " of ", rounds);
  return std::span(round_send).subspan(at(int64_t{round} * ep()), at(ep()));
}
std::span<const int64_t> DispatchPlan::receives(int round) const {
  PESC_CHECK(0 <= round && round < rounds, "round ", round, " of ", rounds);
  return std::span(round_recv).subspan(at(int64_t{round} * ep()), at(ep()));
}

std::vector<int32_t> plan_pairs(std::span<const int32_t> chosen, int64_t top_k, int ep, int64_t local_experts,
                                DispatchPlan& plan) {
  const int64_t tokens = plan.tokens;
  // Pairs in (rank, token) order: count them per rank, then number them. `seen[d]` is the last token with a
  // pair for rank d.
  plan.send_rows.assign(at(ep), 0);
  std::vector<int64_t> seen(at(ep), -1);
  const auto home_of = [&](int64_t t, int64_t j) {
    return chosen[at(t * top_k + j)] / static_cast<int32_t>(local_experts);
  };
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t j = 0; j < top_k; ++j) {
      const auto d = at(home_of(t, j));
      if (std::exchange(seen[d], t) != t) ++plan.send_rows[d];
    }
  }
  std::vector<int64_t> next(at(ep));
  std::exclusive_scan(plan.send_rows.begin(), plan.send_rows.end(), next.begin(), int64_t{0});
  const int64_t pairs = total(plan.send_rows);
  plan.pair_token.resize(at(pairs));
  plan.choice_pair.resize(chosen.size());
  std::vector<int32_t> experts(at(pairs * top_k), -1);
  std::fill(seen.begin(), seen.end(), -1);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t j = 0; j < top_k; ++j) {
      const auto d = at(home_of(t, j));
      if (std::exchange(seen[d], t) != t) plan.pair_token[at(next[d]++)] = static_cast<int32_t>(t);
      const int64_t pair = next[d] - 1;
      plan.choice_pair[at(t * top_k + j)] = static_cast<int32_t>(pair);
      experts[at(pair * top_k + j)] = chosen[at(t * top_k + j)] % static_cast<int32_t>(local_experts);
    }
  }
  return experts;
}

void plan_rounds(std::span<const int64_t> counts, int rank, int64_t capacity, DispatchPlan& plan) {
  const int ep = plan.ep();
  for (int64_t s = 0; s < ep; ++s) plan.recv_rows.push_back(counts[at(s * ep + rank)]);
  plan.rounds = 1;
  for (int d = 0; d < ep; ++d) {
    int64_t received = 0;
    for (int s = 0; s < ep; ++s) received += counts[at(int64_t{s} * ep + d)];
    plan.rounds = std::max(plan.rounds, static_cast<int>((received + capacity - 1) / capacity));
  }
  plan.round_send.resize(at(int64_t{plan.rounds} * ep));
  plan.round_recv.resize(at(int64_t{plan.rounds} * ep));
  // Rows of source s that rank d receives in round r: its run of d's rows, cut by the round's window.
  const auto cut = [capacity](int64_t begin, int64_t rows, int round) {
    const int64_t low = std::max(begin, round * capacity);
    const int64_t high = std::min(begin + rows, (round + 1) * capacity);
    return std::max(int64_t{0}, high - low);
  };
  for (int d = 0; d < ep; ++d) {
    int64_t begin = 0;
    for (int s = 0; s < ep; ++s) {
      const int64_t rows = counts[at(int64_t{s} * ep + d)];
      for (int r = 0; r < plan.rounds; ++r) {
        if (s == rank) plan.round_send[at(int64_t{r} * ep + d)] = cut(begin, rows, r);
        if (d == rank) plan.round_recv[at(int64_t{r} * ep + s)] = cut(begin, rows, r);
      }
      begin += rows;
    }
  }
}

void group_by_expert(int64_t local_experts, int64_t top_k, int64_t capacity, DispatchPlan& plan) {
  for (int round = 0; round < plan.rounds; ++round) {
    const int64_t rows = plan.received(round);
    const int64_t first = round == 0 || rows == 0 ? 0 : round * capacity * top_k;
    plan.groups.push_back(
        group(std::span(plan.recv_experts).subspan(at(first), at(rows * top_k)), local_experts, top_k));
  }
}

std::vector<int32_t> plan_indices(int64_t top_k, const Tensor& memory, DispatchPlan& plan) {
  const int64_t choices = plan.tokens * top_k;
  const int64_t pairs = total(plan.send_rows);
  const int64_t count = pairs * (1 + top_k) + plan.rounds * choices;
  PESC_CHECK(memory.dtype == DType::kI32 && memory.rows == 1 && memory.cols >= count, "memory for ",
             memory.cols, " ", dtype_name(memory.dtype), " indices where ", plan.rounds, " rounds of ",
             plan.tokens, " tokens have ", count);
  std::vector<int32_t> all;
  all.reserve(at(count));
  int64_t taken = 0;
  const auto view = [&](int64_t n) {
    const Tensor t = memory.col_range(taken, taken + n);
    taken += n;
    return t;
  };
  for (int round = 0; round < plan.rounds; ++round) {
    const RoundPairs there(plan, round);
    const int64_t carried = there.packed() * top_k;
    RoundIndices indices;
    indices.token = view(there.packed());
    indices.dispatch_choice = view(carried);
    indices.combine_choice = view(choices);
    plan.indices.push_back(indices);

    there.append_tokens(plan, all);
    const size_t first = all.size();
    all.resize(first + at(carried), static_cast<int32_t>(choices));
    for (int64_t i = 0; i < choices; ++i) {
      const int64_t row = there.packed_row(plan.choice_pair[at(i)]);
      const int64_t place = row * top_k + i % top_k;
      if (row >= 0) all[first + at(place)] = static_cast<int32_t>(i);
      all.push_back(static_cast<int32_t>(row >= 0 ? place : carried + i));
    }
  }
  return all;
}

int64_t most_indices(int ep, int64_t top_k, int64_t tokens, int64_t capacity) {
  if (ep == 1) return 0;
  const int64_t pairs = tokens * std::min<int64_t>(top_k, ep);
  // The fullest rank is one to which every token of the group goes.
  const int64_t rounds = std::max<int64_t>(1, (tokens * ep + capacity - 1) / capacity);
  return pairs * (1 + top_k) + rounds * tokens * top_k;
}

}  // namespace pesc
