#include "runtime/least_traffic.h"

#include <algorithm>

#include "ops/core/check.h"
#include "runtime/plan.h"

namespace pesc {

LeastTraffic least_traffic(const ExperimentConfig& config, const ModelConfig& model, int world) {
  ExperimentConfig once = config;
  once.train.recompute_granularity = Recompute::kNone;
  const Plan plan = make_plan(once, model, world, cpu_rates(1));
  const auto sent = [&plan](const char* name) {
    const auto at = std::ranges::find(plan.phases, name, &PlanPhase::name);
    PESC_CHECK(at != plan.phases.end(), "the plan has no phase '", name, "'");
    return at->sent;
  };
  const double slice = plan.tokens / world;
  const double collectives = 8 * static_cast<double>(model.num_hidden_layers) + 3;
  return {collectives * (plan.tp - 1) * slice * static_cast<double>(model.hidden_size) *
              static_cast<double>(dtype_bytes(config.train.compute_dtype)),
          sent(kExchangePhase), sent(kGradientPhase)};
}

}  // namespace pesc
