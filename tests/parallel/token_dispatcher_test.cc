// ranks: 1 2 4 8
// The token exchange against a reference made from everybody's routing: routing is a pure function of
// (case, rank), so that each rank can derive what every other sends, in plain loops. With
// PESC_TEST_DEVICE=cuda over NCCL.
#include "parallel/token_dispatcher.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <set>

#include "tests/device.h"
#include "tests/parallel/on_device.h"

namespace pesc {
namespace {

constexpr int64_t kCols = 5;

enum class Load { kRandom, kOneExpert, kFirstHalf, kLastRank };

struct Case {
  int64_t experts;
  int64_t top_k;
  int64_t capacity;
  Load load;
  std::vector<int64_t> tokens;  // of each rank, used in turn
};

struct Routing {
  int64_t tokens;
  std::vector<int32_t> experts;  // [tokens * k]
};

Routing routing_of(const Case& c, int rank, int ranks) {
  std::mt19937 gen(static_cast<unsigned>(rank * 77 + 5));
  Routing routing;
  routing.tokens = c.tokens[static_cast<size_t>(rank) % c.tokens.size()];
  for (int64_t t = 0; t < routing.tokens; ++t) {
    std::vector<int32_t> order(static_cast<size_t>(c.experts));
    std::iota(order.begin(), order.end(), 0);
    if (c.load == Load::kFirstHalf) order.resize(static_cast<size_t>(std::max(c.top_k, c.experts / 2)));
    std::shuffle(order.begin(), order.end(), gen);
    const auto to_front = [&](int32_t e) {
      std::iter_swap(order.begin(), std::find(order.begin(), order.end(), e));
    };
    if (c.load == Load::kOneExpert) to_front(0);
    if (c.load == Load::kLastRank) to_front(static_cast<int32_t>(c.experts - c.experts / ranks));
    routing.experts.insert(routing.experts.end(), order.begin(), order.begin() + c.top_k);
  }
  return routing;
}

// One received row: where it comes from, and its local experts.
struct Row {
  int source;
  int64_t token;
  std::vector<int32_t> experts;
};

// The rows that `rank` receives, in (source, token) order.
std::vector<Row> rows_of(const Case& c, int rank, int ranks) {
  const int64_t local = c.experts / ranks;
  std::vector<Row> rows;
  for (int s = 0; s < ranks; ++s) {
    const Routing routing = routing_of(c, s, ranks);
    for (int64_t t = 0; t < routing.tokens; ++t) {
      Row row{s, t, {}};
      bool here = false;
      for (int64_t j = 0; j < c.top_k; ++j) {
        const int32_t e = routing.experts[static_cast<size_t>(t * c.top_k + j)];
        const bool mine = e / local == rank;
        here = here || mine;
        row.experts.push_back(mine ? static_cast<int32_t>(e % local) : -1);
      }
      if (here) rows.push_back(row);
    }
  }
  return rows;
}

float feature(int rank, int64_t token, int64_t col) {
  return static_cast<float>(rank * 10000 + token * 16 + col + 1);
}
float weight(int rank, int64_t token, int64_t j) {
  return static_cast<float>(rank * 10000 + token * 16 + j + 1) * 0.5F;
}

std::vector<Case> cases(int ranks) {
  const int64_t e = std::max(2, ranks);
  return {
      {e, 2, 1000, Load::kRandom, {13, 7, 1, 20}},
      {2 * e, 2, 1000, Load::kRandom, {40, 0, 17}},
      {2 * e, 1, 1000, Load::kRandom, {9}},
      {3 * e, 3, 4, Load::kRandom, {12, 5, 0, 30}},  // several rounds
      {e, 2, 1, Load::kRandom, {6, 3}},              // a row at a time
      {2 * e, 2, 7, Load::kOneExpert, {11, 4}},      // expert 0 of all tokens; most ranks receive little
      {2 * e, 2, 1000, Load::kFirstHalf, {8}},       // half of the experts are never chosen
      {2 * e, 1, 3, Load::kLastRank, {5, 0}},        // one rank receives everything
      {2 * e, 2, 5, Load::kRandom, {0}},             // nobody has tokens
      {2 * e, 2 * e, 9, Load::kRandom, {6, 2}},      // every token goes everywhere
  };
}

class TokenDispatcherTest : public testing::Test {
 protected:
  // Everything about one case on this rank.
  struct Setup {
    Setup(const Case& c, Communicator& comm, Stream& stream)
        : routing(routing_of(c, comm.rank(), comm.size())),
          rows(rows_of(c, comm.rank(), comm.size())),
          dispatcher(comm, c.experts, c.top_k, c.capacity),
          most_indices(TokenDispatcher::index_count(
              comm.size(), c.top_k, *std::max_element(c.tokens.begin(), c.tokens.end()), c.capacity)),
          memory("indices", stream.device(), most_indices * 4),
          indices(memory.allocate(1, most_indices, DType::kI32)),
          plan(dispatcher.prepare(stream, tensor_of(routing.experts.data(), routing.tokens, c.top_k),
                                  indices)),
          scratch("scratch", stream.device(),
                  TokenDispatcher::scratch_bytes(comm.size(), c.top_k, routing.tokens, kCols)) {}
    // The reference's rows of one round.
    [[nodiscard]] std::span<const Row> round_rows(int round) const {
      const auto begin = std::min(rows.size(), static_cast<size_t>(round * dispatcher.capacity()));
      return std::span(rows).subspan(
          begin, std::min(rows.size() - begin, static_cast<size_t>(dispatcher.capacity())));
    }
    Routing routing;
    std::vector<Row> rows;
    TokenDispatcher dispatcher;
    int64_t most_indices;
    Arena memory;
    Tensor indices;
    DispatchPlan plan;
    Arena scratch;
  };

  // The distinct ranks that hold experts of a token.
  [[nodiscard]] std::set<int64_t> ranks_of(const Case& c, const Routing& routing, int64_t token) const {
    std::set<int64_t> ranks;
    for (int64_t j = 0; j < c.top_k; ++j)
      ranks.insert(routing.experts[static_cast<size_t>(token * c.top_k + j)] / (c.experts / size_));
    return ranks;
  }

  template <class Fn>
  void for_cases(Fn&& fn) {
    const std::vector<Case> all = cases(size_);
    for (size_t i = 0; i < all.size(); ++i) {
      SCOPED_TRACE(str_cat("case ", i, " rank ", rank_));
      fn(all[i]);
    }
  }

  MpiSession session_;
  std::unique_ptr<Communicator> comm_ = test_world(session_);
  int rank_ = comm_->rank();
  int size_ = comm_->size();
  Stream stream_{test_device()};
};

TEST_F(TokenDispatcherTest, PlanMatchesEverybodysRouting) {
  for_cases([&](const Case& c) {
    const Setup s(c, *comm_, stream_);
    const DispatchPlan& plan = s.plan;
    EXPECT_EQ(plan.tokens, s.routing.tokens);
    EXPECT_EQ(s.dispatcher.local_experts(), c.experts / size_);
    if (size_ == 1) return;
    ASSERT_EQ(plan.received(), static_cast<int64_t>(s.rows.size()));
    std::vector<int64_t> from(static_cast<size_t>(size_), 0);
    std::vector<int32_t> experts;
    for (const Row& row : s.rows) {
      ++from[static_cast<size_t>(row.source)];
      experts.insert(experts.end(), row.experts.begin(), row.experts.end());
    }
    EXPECT_EQ(plan.recv_rows, from);
    EXPECT_EQ(plan.recv_experts, experts);

    // Home pairs: once per (token, rank), in (rank, token) order; a choice's pair is its token's.
    std::vector<int32_t> pair_token;
    std::vector<int64_t> first(static_cast<size_t>(size_) + 1, 0);
    for (int d = 0; d < size_; ++d) {
      for (int64_t t = 0; t < plan.tokens; ++t)
        if (ranks_of(c, s.routing, t).contains(d)) pair_token.push_back(static_cast<int32_t>(t));
      first[static_cast<size_t>(d) + 1] = static_cast<int64_t>(pair_token.size());
      EXPECT_EQ(plan.send_rows[static_cast<size_t>(d)],
                first[static_cast<size_t>(d) + 1] - first[static_cast<size_t>(d)]);
    }
    EXPECT_EQ(plan.pair_token, pair_token);
    for (size_t i = 0; i < plan.choice_pair.size(); ++i) {
      const auto d = static_cast<size_t>(s.routing.experts[i] / (c.experts / size_));
      EXPECT_GE(plan.choice_pair[i], first[d]);
      EXPECT_LT(plan.choice_pair[i], first[d + 1]);
      EXPECT_EQ(pair_token.at(static_cast<size_t>(plan.choice_pair[i])), static_cast<int32_t>(i) / c.top_k);
    }

    // The fullest rank fixes the rounds for all, and rounds add up to the whole.
    int64_t rounds = 1;
    for (int r = 0; r < size_; ++r)
      rounds =
          std::max(rounds, (static_cast<int64_t>(rows_of(c, r, size_).size()) + c.capacity - 1) / c.capacity);
    EXPECT_EQ(plan.rounds, rounds);
    for (int d = 0; d < size_; ++d) {
      int64_t sent = 0;
      int64_t received = 0;
      for (int r = 0; r < plan.rounds; ++r) {
        sent += plan.round_send.at(static_cast<size_t>(r * size_ + d));
        received += plan.round_recv.at(static_cast<size_t>(r * size_ + d));
      }
      EXPECT_EQ(sent, plan.send_rows[static_cast<size_t>(d)]);
      EXPECT_EQ(received, plan.recv_rows[static_cast<size_t>(d)]);
    }
  });
}

TEST_F(TokenDispatcherTest, PlansWithoutSendingOnOneRank) {
  ASSERT_EQ(size_, 1);
  for_cases([&](const Case& c) {
    Setup s(c, *comm_, stream_);
    EXPECT_EQ(s.plan.rounds, 1);
    EXPECT_EQ(s.plan.received(), s.routing.tokens);
    EXPECT_EQ(s.plan.recv_experts, s.routing.experts);
    EXPECT_EQ(TokenDispatcher::scratch_bytes(1, c.top_k, 1000, 1000), 0);
    EXPECT_EQ(TokenDispatcher::index_count(1, c.top_k, 1000, 1), 0);
    EXPECT_TRUE(s.plan.indices.empty());
    Tensor rows = tensor_of(static_cast<float*>(nullptr), s.routing.tokens, kCols);
    EXPECT_THROW(s.dispatcher.dispatch(stream_, s.plan, 0, rows, rows, s.scratch), InternalError);
    EXPECT_THROW(s.dispatcher.combine(stream_, s.plan, 0, rows, rows, s.scratch), InternalError);
  });
  EXPECT_EQ(comm_->bytes_sent(), 0);
}

TEST_F(TokenDispatcherTest, ReceivedRowsAreGroupedByExpert) {
  for_cases([&](const Case& c) {
    const Setup s(c, *comm_, stream_);
    ASSERT_EQ(s.plan.groups.size(), static_cast<size_t>(s.plan.rounds));
    for (int round = 0; round < s.plan.rounds; ++round) {
      const ExpertGroups& groups = s.plan.groups.at(static_cast<size_t>(round));
      // With one rank there is one round, of all rows.
      const std::span<const Row> rows = size_ == 1 ? std::span<const Row>(s.rows) : s.round_rows(round);
      std::vector<int64_t> offsets = {0};
      std::vector<int32_t> row;
      std::vector<int32_t> choice;
      for (int64_t e = 0; e < c.experts / size_; ++e) {
        for (size_t i = 0; i < rows.size(); ++i) {
          for (int64_t j = 0; j < c.top_k; ++j) {
            if (rows[i].experts[static_cast<size_t>(j)] != e) continue;
            row.push_back(static_cast<int32_t>(i));
            choice.push_back(static_cast<int32_t>(static_cast<int64_t>(i) * c.top_k + j));
          }
        }
        offsets.push_back(static_cast<int64_t>(row.size()));
      }
      EXPECT_EQ(groups.offsets, offsets);
      EXPECT_EQ(groups.row, row);
      EXPECT_EQ(groups.choice, choice);
    }
  });
}

// The indices of every round, on the device, against everybody's routing in plain loops.
TEST_F(TokenDispatcherTest, IndicesMatchEverybodysRoutingOnSeveralRanks) {
  ASSERT_GT(size_, 1);
  for_cases([&](const Case& c) {
    const Setup s(c, *comm_, stream_);
    const int64_t choices = s.plan.tokens * c.top_k;
    ASSERT_EQ(s.plan.indices.size(), static_cast<size_t>(s.plan.rounds));
    int64_t stored = 0;
    for (int round = 0; round < s.plan.rounds; ++round) {
      // What this rank sends in this round: of every rank's window of received rows, those that are from
      // here.
      std::vector<int32_t> token;
      std::vector<int32_t> there;
      std::vector<int32_t> back(static_cast<size_t>(choices), -1);
      for (int d = 0; d < size_; ++d) {
        const std::vector<Row> rows = rows_of(c, d, size_);
        const auto end = std::min(rows.size(), static_cast<size_t>((round + 1) * c.capacity));
        for (auto i = static_cast<size_t>(round * c.capacity); i < end; ++i) {
          if (rows[i].source != rank_) continue;
          token.push_back(static_cast<int32_t>(rows[i].token));
          for (int64_t j = 0; j < c.top_k; ++j) {
            const int64_t choice = rows[i].token * c.top_k + j;
            const bool holds = rows[i].experts[static_cast<size_t>(j)] >= 0;
            if (holds) back[static_cast<size_t>(choice)] = static_cast<int32_t>(there.size());
            there.push_back(static_cast<int32_t>(holds ? choice : choices));
          }
        }
      }
      for (int64_t i = 0; i < choices; ++i) {
        int32_t& place = back[static_cast<size_t>(i)];
        if (place < 0) place = static_cast<int32_t>(static_cast<int64_t>(there.size()) + i);
      }
      const RoundIndices& indices = s.plan.indices[static_cast<size_t>(round)];
      const auto host = [&](const Tensor& t) {
        std::vector<int32_t> values(static_cast<size_t>(t.cols));
        if (t.cols > 0) copy_to_host(stream_, t, values.data());
        return values;
      };
      EXPECT_EQ(host(indices.token), token) << round;
      EXPECT_EQ(host(indices.dispatch_choice), there) << round;
      EXPECT_EQ(host(indices.combine_choice), back) << round;
      stored += indices.token.cols + indices.dispatch_choice.cols + indices.combine_choice.cols;
    }
    EXPECT_LE(stored, s.most_indices);
  });
}

// Where every token goes to every rank, a plan has as many indices as index_count says; one less is refused.
TEST_F(TokenDispatcherTest, TheBoundOnIndicesIsMetOnSeveralRanks) {
  ASSERT_GT(size_, 1);
  const Case c{2 * size_, 2 * size_, 9, Load::kRandom, {6}};
  const Setup s(c, *comm_, stream_);
  int64_t stored = 0;
  for (const RoundIndices& i : s.plan.indices)
    stored += i.token.cols + i.dispatch_choice.cols + i.combine_choice.cols;
  EXPECT_EQ(stored, s.most_indices);
  EXPECT_EQ(s.plan.rounds, (6 * size_ + 8) / 9);
  Tensor small = s.indices.col_range(0, s.most_indices - 1);
  Routing routing = s.routing;
  EXPECT_THROW(
      (void)s.dispatcher.prepare(stream_, tensor_of(routing.experts.data(), routing.tokens, c.top_k), small),
      InternalError);
}

TEST_F(TokenDispatcherTest, DispatchThenCombineWithIdentityExpertsOnSeveralRanks) {
  ASSERT_GT(size_, 1);
  for_cases([&](const Case& c) {
    Setup s(c, *comm_, stream_);
    std::vector<float> f(static_cast<size_t>(s.plan.tokens * kCols));
    std::vector<float> y(f.size(), 0.25F);  // combine adds to it
    for (size_t i = 0; i < f.size(); ++i)
      f[i] = feature(rank_, static_cast<int64_t>(i) / kCols, static_cast<int64_t>(i) % kCols);
    const OnDevice home(stream_, f, s.plan.tokens, kCols);
    OnDevice sum(stream_, y, s.plan.tokens, kCols);
    // What travels is packed by the indices on the device, which prepare has made: nothing is made of these.
    s.plan.pair_token.clear();
    s.plan.choice_pair.clear();
    const int64_t before = comm_->bytes_sent();
    int64_t remote = 0;
    for (int round = 0; round < s.plan.rounds; ++round) {
      const std::span<const Row> rows = s.round_rows(round);
      std::vector<float> received(rows.size() * kCols, -1);
      OnDevice here(stream_, received, static_cast<int64_t>(rows.size()), kCols);
      s.dispatcher.dispatch(stream_, s.plan, round, home.view, here.view, s.scratch);
      here.fetch();
      for (size_t i = 0; i < rows.size(); ++i) {
        if (rows[i].source != rank_) ++remote;
        for (int64_t col = 0; col < kCols; ++col)
          ASSERT_EQ(received[i * kCols + static_cast<size_t>(col)],
                    feature(rows[i].source, rows[i].token, col));
      }
      s.dispatcher.combine(stream_, s.plan, round, here.view, sum.view, s.scratch);
      stream_.synchronize();  // before the received rows' memory goes
    }
    sum.fetch();
    for (int64_t t = 0; t < s.plan.tokens; ++t) {
      const auto copies = static_cast<float>(ranks_of(c, s.routing, t).size());
      for (int64_t col = 0; col < kCols; ++col)
        ASSERT_EQ(y[static_cast<size_t>(t * kCols + col)], 0.25F + copies * feature(rank_, t, col)) << t;
    }
    // Sent: each (token, other rank) once there, and each row received from elsewhere once back.
    int64_t out = 0;
    for (int d = 0; d < size_; ++d)
      if (d != rank_) out += s.plan.send_rows[static_cast<size_t>(d)];
    EXPECT_EQ(comm_->bytes_sent() - before, (out + remote) * kCols * 4);
    EXPECT_EQ(s.scratch.used(), 0);
  });
}

TEST_F(TokenDispatcherTest, TopkWeightsReturnOnSeveralRanks) {
  ASSERT_GT(size_, 1);
  for_cases([&](const Case& c) {
    Setup s(c, *comm_, stream_);
    const int64_t choices = s.plan.tokens * c.top_k;
    std::vector<float> w(static_cast<size_t>(choices));
    std::vector<float> back(w.size(), -7);
    for (int64_t i = 0; i < choices; ++i) w[static_cast<size_t>(i)] = weight(rank_, i / c.top_k, i % c.top_k);
    const OnDevice home(stream_, w, s.plan.tokens, c.top_k);
    OnDevice out(stream_, back, s.plan.tokens, c.top_k);
    int64_t written = 0;
    for (int round = 0; round < s.plan.rounds; ++round) {
      const std::span<const Row> rows = s.round_rows(round);
      std::vector<float> received(rows.size() * static_cast<size_t>(c.top_k), -1);
      OnDevice here(stream_, received, static_cast<int64_t>(rows.size()), c.top_k);
      s.dispatcher.dispatch_topk_weights(stream_, s.plan, round, home.view, here.view, s.scratch);
      here.fetch();
      for (size_t i = 0; i < rows.size(); ++i) {
        for (int64_t j = 0; j < c.top_k; ++j) {
          const bool mine = rows[i].experts[static_cast<size_t>(j)] >= 0;
          float& got = received[i * static_cast<size_t>(c.top_k) + static_cast<size_t>(j)];
          ASSERT_EQ(got, mine ? weight(rows[i].source, rows[i].token, j) : 0.0F);
          got = mine ? 2 * got : -99;  // what stands in choices of experts elsewhere must not come back
        }
      }
      here.push();
      s.dispatcher.combine_topk_weights(stream_, s.plan, round, here.view, out.view, s.scratch);
      out.fetch();
      // Only choices carried so far are written.
      const auto touched = std::count_if(back.begin(), back.end(), [](float x) { return x != -7; });
      EXPECT_GE(touched, written);
      written = touched;
    }
    for (size_t i = 0; i < back.size(); ++i) ASSERT_EQ(back[i], 2 * w[i]);
    EXPECT_EQ(s.scratch.used(), 0);
  });
}

TEST_F(TokenDispatcherTest, CombineIsTheAdjointOfDispatchOnSeveralRanks) {
  ASSERT_GT(size_, 1);
  for_cases([&](const Case& c) {
    Setup s(c, *comm_, stream_);
    std::mt19937 gen(static_cast<unsigned>(rank_ + 1));
    std::uniform_real_distribution<float> uniform(-1, 1);
    const auto random = [&](int64_t n) {
      std::vector<float> v(static_cast<size_t>(n));
      for (float& x : v) x = uniform(gen);
      return v;
    };
    const auto dot = [](const std::vector<float>& a, const std::vector<float>& b) {
      return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
    };
    // <dispatch(x), r> == <x, combine(r)> over the group, for rows (sums 0, 1) and for choices (2, 3).
    std::vector<double> sums(4, 0);
    const auto both_ways = [&](int round, int64_t cols, size_t first, auto&& dispatch, auto&& combine) {
      const auto n = static_cast<int64_t>(s.round_rows(round).size());
      std::vector<float> x = random(s.plan.tokens * cols);
      std::vector<float> r = random(n * cols);
      std::vector<float> there(r.size());
      std::vector<float> back(x.size());
      const OnDevice from(stream_, x, s.plan.tokens, cols), rows(stream_, r, n, cols);
      OnDevice out(stream_, there, n, cols), home(stream_, back, s.plan.tokens, cols);
      (s.dispatcher.*dispatch)(stream_, s.plan, round, from.view, out.view, s.scratch);
      (s.dispatcher.*combine)(stream_, s.plan, round, rows.view, home.view, s.scratch);
      out.fetch();
      home.fetch();
      sums[first] += dot(there, r);
      sums[first + 1] += dot(x, back);
    };
    for (int round = 0; round < s.plan.rounds; ++round) {
      both_ways(round, kCols, 0, &TokenDispatcher::dispatch, &TokenDispatcher::combine);
      both_ways(round, c.top_k, 2, &TokenDispatcher::dispatch_topk_weights,
                &TokenDispatcher::combine_topk_weights);
    }
    OnDevice all(stream_, sums, 1, 4);
    comm_->all_reduce_sum(stream_, all.view);
    all.fetch();
    EXPECT_NEAR(sums[0], sums[1], 1e-4);
    EXPECT_NEAR(sums[2], sums[3], 1e-4);
  });
}

TEST_F(TokenDispatcherTest, SizesThatCannotBeSpreadAreRefused) {
  EXPECT_THROW(TokenDispatcher(*comm_, 0, 1, 4), UsageError);
  if (size_ > 1) {
    EXPECT_THROW(TokenDispatcher(*comm_, size_ + 1, 1, 4), UsageError);
  }
  EXPECT_THROW(TokenDispatcher(*comm_, size_, size_ + 1, 4), InternalError);
  EXPECT_THROW(TokenDispatcher(*comm_, size_, 1, 0), InternalError);
  const TokenDispatcher dispatcher(*comm_, size_, 1, 4);
  std::vector<int32_t> chosen = {size_};
  EXPECT_THROW((void)dispatcher.prepare(stream_, tensor_of(chosen.data(), 1, 1), {}), InternalError);
}

}  // namespace
}  // namespace pesc
