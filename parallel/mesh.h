// Rank arithmetic, without MPI or GPUs. parallel/README.md shows eight ranks.
//
// world = dp x tp, and tensor-parallel ranks are adjacent: rank = dp_rank * tp + tp_rank. ep divides world;
// an expert-parallel group is `ep` consecutive ranks, so it folds over tp first, then over dp. Expert e is on
// rank e / (experts / ep) of each ep group.
#pragma once

#include <vector>

#include "parallel/shard_spec.h"

namespace pesc {

// What is exchanged between the ranks of an expert-parallel group (parallel/README.md): the tokens, or the adapters'
// weights and their gradients. With ep = 1 both are the same: nothing.
enum class ExpertExchange { kTokens, kWeights };
[[nodiscard]] const char* expert_exchange_name(ExpertExchange exchange);  // "TOKENS", "WEIGHTS"

class Mesh {
 public:
  // Throws UsageError when tp or ep do not divide world, or rank is out of range.
  Mesh(int world, int rank, int tp, int ep);

  [[nodiscard]] int world() const { return world_; }
  [[nodiscard]] int rank() const { return rank_; }
  [[nodiscard]] int tp() const { return tp_; }
  [[nodiscard]] int dp() const { return world_ / tp_; }
  [[nodiscard]] int ep() const { return ep_; }
  [[nodiscard]] int tp_rank() const { return rank_ % tp_; }
  [[nodiscard]] int dp_rank() const { return rank_ / tp_; }
  [[nodiscard]] int ep_rank() const { return rank_ % ep_; }
  [[nodiscard]] int ep_group() const { return rank_ / ep_; }

  // This rank's experts [begin, end) of `experts`. Throws UsageError when ep does not divide `experts`.
  [[nodiscard]] Range experts(int64_t experts) const;

  // Members of this rank's tensor-parallel or expert-parallel group, as world ranks in rising order.
  [[nodiscard]] std::vector<int> tp_members() const;
  [[nodiscard]] std::vector<int> ep_members() const;

 private:
  int world_, rank_, tp_, ep_;
};

}  // namespace pesc
