// The token exchange of one expert-parallel group; the letters and the three phases are in expert_exchange.h.
//
// The plan is made of two host collectives: all ranks learn the [ep x ep] matrix of counts, from which each
// derives the rounds and everybody's part in them; then the local expert numbers of every row travel (k per
// row, -1 where that choice lives elsewhere). Rank d receives in round r its rows
// [r * capacity, (r + 1) * capacity) in (source, token) order.
//
// With ep = 1 the received rows are the home rows: recv_experts is the choice itself, pair_token and
// slot_pair stay empty, and there is always one round, whatever the capacity.
#include "parallel/expert_exchange.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "ops/core/check.h"
#include "ops/reduce.h"

namespace pesc {
namespace {

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

int64_t total(std::span<const int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

// Entries of `table` [rounds * ep] for one round.
std::span<const int64_t> of_round(const std::vector<int64_t>& table, int round, int ep) {
  return std::span(table).subspan(at(int64_t{round} * ep), at(ep));
}

// The home pairs sent in one round: to each rank a run of its pairs, packed one run after the other.
class RoundPairs {
 public:
  RoundPairs(const ExchangePlan& plan, int round) {
    const auto ep = static_cast<int>(plan.send_rows.size());
    PESC_CHECK(0 <= round && round < plan.rounds, "round ", round, " of ", plan.rounds);
    int64_t first = 0;
    for (int d = 0; d < ep; ++d) {
      int64_t begin = first;
      for (int r = 0; r < round; ++r) begin += of_round(plan.round_send, r, ep)[at(d)];
      const int64_t rows = of_round(plan.round_send, round, ep)[at(d)];
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
  // The home token of every packed row.
  [[nodiscard]] std::vector<int32_t> tokens(const ExchangePlan& plan) const {
    if (whole_) return plan.pair_token;
    std::vector<int32_t> tokens;
    tokens.reserve(at(packed_));
    for (const Run& run : runs_)
      tokens.insert(tokens.end(), plan.pair_token.begin() + run.begin, plan.pair_token.begin() + run.end);
    return tokens;
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

Tensor index_tensor(Stream& stream, const std::vector<int32_t>& index, Arena& scratch) {
  Tensor t = scratch.allocate(1, static_cast<int64_t>(index.size()), DType::kI32);
  if (!index.empty()) copy_from_host(stream, index.data(), t);
  return t;
}

void check_round(const ExchangePlan& plan, int round, int ep, const Tensor& received, const char* what) {
  PESC_CHECK(ep > 1, what, ": with ep = 1 nothing is exchanged");
  PESC_CHECK(0 <= round && round < plan.rounds, what, ": round ", round, " of ", plan.rounds);
  const int64_t rows = total(of_round(plan.round_recv, round, ep));
  PESC_CHECK(received.rows == rows, what, ": ", received.rows, " rows for round ", round, ", which has ",
             rows);
}

// counts[s * ep + d]: rows from rank s to rank d in all rounds.
void plan_rounds(std::span<const int64_t> counts, int rank, int ep, int64_t capacity, ExchangePlan& plan) {
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

}  // namespace

int64_t ExchangePlan::received() const {
  return total(recv_rows);
}

ExpertExchange::ExpertExchange(Communicator& ep, int64_t experts, int64_t top_k, int64_t capacity)
    : ep_(ep),
      experts_(experts),
      top_k_(top_k),
      capacity_(capacity),
      local_experts_(experts / std::max(1, ep.size())) {
  if (experts < 1 || experts % ep.size() != 0) {
    throw UsageError(str_cat("layout: ", experts, " experts cannot be spread evenly over ep = ", ep.size(),
                             " ranks; choose an ep that divides the number of experts"));
  }
  PESC_CHECK(top_k >= 1 && top_k <= experts, "top_k ", top_k, " of ", experts, " experts");
  PESC_CHECK(capacity >= 1, "capacity ", capacity);
}

ExchangePlan ExpertExchange::prepare(const Tensor& top_experts) const {
  PESC_CHECK(top_experts.cols == top_k_ && top_experts.contiguous(), "top experts [", top_experts.rows, ", ",
             top_experts.cols, "] with k = ", top_k_);
  const int ep = ep_.size();
  const int64_t tokens = top_experts.rows;
  const std::span<const int32_t> chosen(top_experts.i32(), at(top_experts.size()));
  for (const int32_t e : chosen)
    PESC_CHECK(0 <= e && e < experts_, "the router chose expert ", e, " of ", experts_);

  ExchangePlan plan;
  plan.tokens = tokens;
  if (ep == 1) {
    plan.send_rows = plan.recv_rows = plan.round_send = plan.round_recv = {tokens};
    plan.recv_experts.assign(chosen.begin(), chosen.end());
    return plan;
  }

  // Pairs in (rank, token) order: count them per rank, then number them. `seen[d]` is the last token with a
  // pair for rank d.
  plan.send_rows.assign(at(ep), 0);
  std::vector<int64_t> seen(at(ep), -1);
  const auto home_of = [&](int64_t t, int64_t j) {
    return chosen[at(t * top_k_ + j)] / static_cast<int32_t>(local_experts_);
  };
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t j = 0; j < top_k_; ++j) {
      const auto d = at(home_of(t, j));
      if (std::exchange(seen[d], t) != t) ++plan.send_rows[d];
    }
  }
  std::vector<int64_t> next(at(ep));
  std::exclusive_scan(plan.send_rows.begin(), plan.send_rows.end(), next.begin(), int64_t{0});
  const int64_t pairs = total(plan.send_rows);
  plan.pair_token.resize(at(pairs));
  plan.slot_pair.resize(chosen.size());
  std::vector<int32_t> metadata(at(pairs * top_k_), -1);
  std::fill(seen.begin(), seen.end(), -1);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t j = 0; j < top_k_; ++j) {
      const auto d = at(home_of(t, j));
      if (std::exchange(seen[d], t) != t) plan.pair_token[at(next[d]++)] = static_cast<int32_t>(t);
      const int64_t pair = next[d] - 1;
      plan.slot_pair[at(t * top_k_ + j)] = static_cast<int32_t>(pair);
      metadata[at(pair * top_k_ + j)] = chosen[at(t * top_k_ + j)] % static_cast<int32_t>(local_experts_);
    }
  }

  // Everybody's counts, and a check that the group agrees on the rounds' size.
  std::vector<int64_t> own = plan.send_rows;
  own.push_back(capacity_);
  const std::vector<int64_t> gathered = ep_.host_all_gather(own);
  std::vector<int64_t> counts(at(int64_t{ep} * ep));
  for (int64_t s = 0; s < ep; ++s) {
    PESC_CHECK(gathered[at(s * (ep + 1) + ep)] == capacity_, "rank ", s, " of '", ep_.name(),
               "' has capacity ", gathered[at(s * (ep + 1) + ep)], ", not ", capacity_);
    std::copy_n(gathered.begin() + s * (ep + 1), ep, counts.begin() + s * ep);
  }
  for (int64_t s = 0; s < ep; ++s) plan.recv_rows.push_back(counts[at(s * ep + ep_.rank())]);
  plan_rounds(counts, ep_.rank(), ep, capacity_, plan);

  std::vector<int64_t> send_counts = plan.send_rows;
  std::vector<int64_t> recv_counts = plan.recv_rows;
  for (auto* row_counts : {&send_counts, &recv_counts})
    for (int64_t& n : *row_counts) n *= top_k_;
  plan.recv_experts = ep_.host_all_to_all_v(metadata, send_counts, recv_counts);
  return plan;
}

ExpertGroups ExpertExchange::groups(const ExchangePlan& plan, int round) const {
  PESC_CHECK(0 <= round && round < plan.rounds, "round ", round, " of ", plan.rounds);
  const int64_t rows = total(of_round(plan.round_recv, round, ep_.size()));
  const std::span<const int32_t> experts =
      std::span(plan.recv_experts)
          .subspan(at(round == 0 || rows == 0 ? 0 : round * capacity_ * top_k_), at(rows * top_k_));
  ExpertGroups groups;
  groups.offsets.assign(at(local_experts_ + 1), 0);
  for (const int32_t e : experts)
    if (e >= 0) ++groups.offsets[at(e + 1)];
  std::partial_sum(groups.offsets.begin(), groups.offsets.end(), groups.offsets.begin());
  groups.row.resize(at(groups.offsets.back()));
  groups.slot.resize(groups.row.size());
  std::vector<int64_t> next(groups.offsets.begin(), groups.offsets.end() - 1);
  for (size_t slot = 0; slot < experts.size(); ++slot) {
    if (experts[slot] < 0) continue;
    const auto i = at(next[at(experts[slot])]++);
    groups.row[i] = static_cast<int32_t>(static_cast<int64_t>(slot) / top_k_);
    groups.slot[i] = static_cast<int32_t>(slot);
  }
  return groups;
}

void ExpertExchange::dispatch(Stream& stream, const ExchangePlan& plan, int round, const Tensor& rows,
                              const Tensor& out, Arena& scratch) const {
  check_round(plan, round, size(), out, "dispatch");
  PESC_CHECK(rows.rows == plan.tokens && rows.cols == out.cols, "dispatch of [", rows.rows, ", ", rows.cols,
             "] with ", plan.tokens, " tokens");
  const PhaseScope phase(stream, Phase::kCommunication);
  const Arena::Scope scope(scratch);
  const RoundPairs pairs(plan, round);
  const Tensor index = index_tensor(stream, pairs.tokens(plan), scratch);
  const Tensor packed = scratch.allocate(pairs.packed(), rows.cols, rows.dtype);
  gather_rows(stream, rows, index, packed);
  ep_.all_to_all_v(stream, packed, of_round(plan.round_send, round, size()), out,
                   of_round(plan.round_recv, round, size()));
}

void ExpertExchange::combine(Stream& stream, const ExchangePlan& plan, int round, const Tensor& rows,
                             const Tensor& out, Arena& scratch) const {
  check_round(plan, round, size(), rows, "combine");
  PESC_CHECK(out.rows == plan.tokens && rows.cols == out.cols, "combine into [", out.rows, ", ", out.cols,
             "] with ", plan.tokens, " tokens");
  const PhaseScope phase(stream, Phase::kCommunication);
  const Arena::Scope scope(scratch);
  const RoundPairs pairs(plan, round);
  const Tensor index = index_tensor(stream, pairs.tokens(plan), scratch);
  const Tensor packed = scratch.allocate(pairs.packed(), rows.cols, rows.dtype);
  ep_.all_to_all_v(stream, rows, of_round(plan.round_recv, round, size()), packed,
                   of_round(plan.round_send, round, size()));
  scatter_add_rows(stream, packed, index, out);  // pairs stand in rank order, so tokens add up in it
}

// Both slot calls move single values by one gather over a source that has the default appended: zero for
// slots of experts elsewhere, the old value for choices of another round.
void ExpertExchange::dispatch_slots(Stream& stream, const ExchangePlan& plan, int round, const Tensor& values,
                                    const Tensor& out, Arena& scratch) const {
  check_round(plan, round, size(), out, "dispatch_slots");
  const int64_t slots = plan.tokens * top_k_;
  PESC_CHECK(values.rows == plan.tokens && values.cols == top_k_ && out.cols == top_k_, "dispatch_slots of [",
             values.rows, ", ", values.cols, "]");
  const PhaseScope phase(stream, Phase::kCommunication);
  const Arena::Scope scope(scratch);
  const RoundPairs pairs(plan, round);
  std::vector<int32_t> index(at(pairs.packed() * top_k_), static_cast<int32_t>(slots));
  for (int64_t i = 0; i < slots; ++i) {
    const int64_t row = pairs.packed_row(plan.slot_pair[at(i)]);
    if (row >= 0) index[at(row * top_k_ + i % top_k_)] = static_cast<int32_t>(i);
  }
  const Tensor source = scratch.allocate(slots + 1, 1, values.dtype);
  copy(stream, values, source.row_range(0, slots).reshaped(plan.tokens, top_k_));
  fill_zero(stream, source.row_range(slots, slots + 1));
  const Tensor packed = scratch.allocate(pairs.packed(), top_k_, values.dtype);
  gather_rows(stream, source, index_tensor(stream, index, scratch), packed.reshaped(packed.size(), 1));
  ep_.all_to_all_v(stream, packed, of_round(plan.round_send, round, size()), out,
                   of_round(plan.round_recv, round, size()));
}

void ExpertExchange::combine_slots(Stream& stream, const ExchangePlan& plan, int round, const Tensor& values,
                                   const Tensor& out, Arena& scratch) const {
  check_round(plan, round, size(), values, "combine_slots");
  const int64_t slots = plan.tokens * top_k_;
  PESC_CHECK(out.rows == plan.tokens && out.cols == top_k_ && values.cols == top_k_ && out.contiguous(),
             "combine_slots into [", out.rows, ", ", out.cols, "]");
  const PhaseScope phase(stream, Phase::kCommunication);
  const Arena::Scope scope(scratch);
  const RoundPairs pairs(plan, round);
  const int64_t carried = pairs.packed() * top_k_;
  const Tensor source = scratch.allocate(carried + slots, 1, values.dtype);
  ep_.all_to_all_v(stream, values, of_round(plan.round_recv, round, size()),
                   source.row_range(0, carried).reshaped(pairs.packed(), top_k_),
                   of_round(plan.round_send, round, size()));
  copy(stream, out, source.row_range(carried, carried + slots).reshaped(plan.tokens, top_k_));
  std::vector<int32_t> index(at(slots));
  for (int64_t i = 0; i < slots; ++i) {
    const int64_t row = pairs.packed_row(plan.slot_pair[at(i)]);
    index[at(i)] = static_cast<int32_t>(row >= 0 ? row * top_k_ + i % top_k_ : carried + i);
  }
  gather_rows(stream, source, index_tensor(stream, index, scratch), out.reshaped(slots, 1));
}

int64_t ExpertExchange::scratch_bytes(int ep, int64_t top_k, int64_t tokens, int64_t cols, DType type) {
  if (ep == 1) return 0;
  const int64_t pairs = tokens * std::min<int64_t>(top_k, ep);
  const int64_t slots = tokens * top_k;
  Arena rows = Arena::planning("exchange rows");
  (void)rows.allocate(1, pairs, DType::kI32);
  (void)rows.allocate(pairs, cols, type);
  Arena there = Arena::planning("exchange slots, there");
  (void)there.allocate(slots + 1, 1);
  (void)there.allocate(pairs, top_k);
  (void)there.allocate(1, pairs * top_k, DType::kI32);
  Arena back = Arena::planning("exchange slots, back");
  (void)back.allocate(pairs * top_k + slots, 1);
  (void)back.allocate(1, slots, DType::kI32);
  return std::max({rows.used(), there.used(), back.used()});
}

}  // namespace pesc
