#include "runtime/least_traffic.h"

namespace pesc {

Plan plan_of_traffic(const ExperimentConfig& config, const ModelConfig& model, int world) {
  MachineRates rates = cpu_rates(1);
  rates.fp8_gemm = rates.gemm;  // a plan of FP8 GEMMs needs some rate
  return make_plan(config, model, world, rates);
}

LeastTraffic least_traffic(const ExperimentConfig& config, const ModelConfig& model, int world) {
  ExperimentConfig once = config;
  once.train.recompute_granularity = Recompute::kNone;
  const Plan plan = plan_of_traffic(once, model, world);
  LeastTraffic least;
  for (const PlanPhase& phase : plan.phases) {
    if (is_exchange(phase.name)) least.exchange += phase.sent;
    if (phase.name == kGradientPhase) least.gradients += phase.sent;
  }
  const double slice = plan.tokens / world;
  const double collectives = 8 * static_cast<double>(model.num_hidden_layers) + 3;
  least.tensor_parallel = collectives * (plan.tp - 1) * slice * static_cast<double>(model.hidden_size) *
                          static_cast<double>(dtype_bytes(config.train.compute_dtype));
  return least;
}

}  // namespace pesc
