// Rank arithmetic; see mesh.h for the layout.
#include "parallel/mesh.h"

#include <numeric>

#include "ops/core/check.h"

namespace pesc {

Mesh::Mesh(int world, int rank, int tp, int ep) : world_(world), rank_(rank), tp_(tp), ep_(ep) {
  if (world < 1) throw UsageError(str_cat("a layout needs at least one rank, not ", world));
  if (rank < 0 || rank >= world) throw UsageError(str_cat("rank ", rank, " is not one of 0..", world - 1));
  const auto must_divide = [world](const char* field, int value) {
    if (value >= 1 && world % value == 0) return;
    throw UsageError(str_cat("layout: ", field, " = ", value, " does not divide the ", world,
                             " ranks of this run; choose ", field, " among the divisors of ", world,
                             " or start another number of ranks"));
  };
  must_divide("tp", tp);
  must_divide("ep", ep);
}

namespace {

int64_t experts_per_rank(int64_t experts, int ep) {
  if (experts >= 1 && experts % ep == 0) return experts / ep;
  throw UsageError(str_cat("layout: ", experts, " experts cannot be spread evenly over ep = ", ep,
                           " ranks; choose an ep that divides the number of experts"));
}

}  // namespace

Range Mesh::experts(int64_t experts) const {
  const int64_t local = experts_per_rank(experts, ep_);
  return {ep_rank() * local, (ep_rank() + 1) * local};
}

const char* expert_exchange_name(ExpertExchange exchange) {
  return exchange == ExpertExchange::kTokens ? "TOKENS" : "WEIGHTS";
}

std::vector<int> Mesh::ep_members() const {
  std::vector<int> ranks(static_cast<size_t>(ep_));
  std::iota(ranks.begin(), ranks.end(), ep_group() * ep_);
  return ranks;
}

std::vector<int> Mesh::tp_members() const {
  std::vector<int> ranks(static_cast<size_t>(tp_));
  std::iota(ranks.begin(), ranks.end(), dp_rank() * tp_);
  return ranks;
}

}  // namespace pesc
