// Rank arithmetic; see mesh.h for the layout.
#include "parallel/mesh.h"

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

std::vector<int> ranks_from(int first, int count, int step) {
  std::vector<int> ranks(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) ranks[static_cast<size_t>(i)] = first + i * step;
  return ranks;
}

}  // namespace

Range Mesh::experts(int64_t experts) const {
  const int64_t local = experts_per_rank(experts, ep_);
  return {ep_rank() * local, (ep_rank() + 1) * local};
}

int Mesh::expert_home(int64_t expert, int64_t experts) const {
  PESC_CHECK(0 <= expert && expert < experts, "expert ", expert, " of ", experts);
  return static_cast<int>(expert / experts_per_rank(experts, ep_));
}

std::vector<int> Mesh::tp_members() const {
  return ranks_from(dp_rank() * tp_, tp_, 1);
}

std::vector<int> Mesh::dp_members() const {
  return ranks_from(tp_rank(), dp(), tp_);
}

std::vector<int> Mesh::ep_members() const {
  return ranks_from(ep_group() * ep_, ep_, 1);
}

}  // namespace pesc
