#include "runtime/expert_exchange.h"

#include <algorithm>

#include "ops/core/check.h"

namespace pesc {
namespace {

double element_bytes(const ExperimentConfig& c) {
  return static_cast<double>(dtype_bytes(c.train.compute_dtype));
}

bool exchanges(const ExperimentConfig& c) {
  return c.pesc.mode == TrainMode::kPesc && c.parallel.ep > 1;
}

// One chunk is what weights have too.
bool asks_for_chunks(const ExperimentConfig& c) {
  return c.parallel.dispatch_chunks > 1;
}

}  // namespace

void check_dispatch_chunks(const ExperimentConfig& c, int64_t ep) {
  if (c.pesc.mode != TrainMode::kPesc || ep == 1 || !asks_for_chunks(c) ||
      c.parallel.expert_exchange != ExpertExchange::kWeights)
    return;
  const std::string field = "parallel.dispatch_chunks";
  throw UsageError(
      str_cat(c.places.prefix(field), field, " is ", c.parallel.dispatch_chunks,
              ", but parallel.expert_exchange is WEIGHTS, where no tokens travel that could be cut; "
              "leave one of them out"));
}

double remote_ranks(const ExperimentConfig& c) {
  const auto experts = static_cast<double>(c.pesc.moe.num_experts);
  const double ep = c.parallel.ep;
  const double here = experts / ep;
  double none = 1;  // that none of the k choices is on a given rank
  for (double j = 0; j < static_cast<double>(c.pesc.moe.num_experts_per_tok); ++j)
    none *= std::max(0.0, experts - here - j) / (experts - j);
  return (ep - 1) * (1 - none);
}

double token_exchange_bytes(const ExperimentConfig& c, double recomputed) {
  // Rows there and back, forward and backward; a recompute is a forward.
  return remote_ranks(c) * (4 + 2 * recomputed) * element_bytes(c);
}

double weight_exchange_bytes(const ExperimentConfig& c, double gathers) {
  const double ep = c.parallel.ep;
  const double widths = 2.0 * static_cast<double>(c.pesc.moe.num_experts * c.pesc.moe.adapter_dim);
  return (ep - 1) / ep * widths * (gathers * element_bytes(c) + 4);  // the gradients in float32
}

ExpertExchange expert_exchange(const ExperimentConfig& c, int world) {
  if (!exchanges(c)) return ExpertExchange::kTokens;
  if (c.parallel.expert_exchange) return *c.parallel.expert_exchange;
  if (asks_for_chunks(c)) return ExpertExchange::kTokens;
  const double tokens =
      static_cast<double>(c.train.micro_batch_rows() * c.data.max_seq_length) / static_cast<double>(world);
  const double recomputed = c.train.recompute_granularity == Recompute::kNone ? 0 : 1;
  return tokens * token_exchange_bytes(c, recomputed) > weight_exchange_bytes(c, 2) ? ExpertExchange::kWeights
                                                                                    : ExpertExchange::kTokens;
}

std::string expert_exchange_text(const ExperimentConfig& c, int world) {
  if (!exchanges(c)) return "";
  const ExpertExchange exchange = expert_exchange(c, world);
  const std::string name = expert_exchange_name(exchange);
  if (c.parallel.expert_exchange) return name;
  std::string why;
  if (asks_for_chunks(c)) why = str_cat(" for parallel.dispatch_chunks ", c.parallel.dispatch_chunks);
  if (exchange == ExpertExchange::kWeights && c.parallel.buffer_factor != ParallelSection().buffer_factor)
    why = str_cat("; parallel.buffer_factor ", c.parallel.buffer_factor,
                  " has no effect, for no tokens travel");
  return str_cat(name, " (chosen by AUTO", why, ")");
}

}  // namespace pesc
