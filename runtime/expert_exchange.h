// parallel.expert_exchange: what is exchanged in a run, and what each of the two exchanges sends.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/config/experiment.h"

namespace pesc {

// The exchange of a run on so many ranks. AUTO is TOKENS where parallel.dispatch_chunks asks for them in chunks, and else
// what sends fewer bytes with balanced experts and full rows: a function of the experiment and the layout, never of a
// step's counts.
[[nodiscard]] ExpertExchange expert_exchange(const ExperimentConfig& config, int world);
// "WEIGHTS", "TOKENS (chosen by AUTO)"; empty where nothing is exchanged: without experts, or with ep = 1. Says by which
// setting AUTO chose, and which one has no effect by its choice.
[[nodiscard]] std::string expert_exchange_text(const ExperimentConfig& config, int world);

// For training: refuses parallel.dispatch_chunks 2 with WEIGHTS (UsageError naming field and line), where experts are spread
// over `ep` ranks. Inference reads no dispatch_chunks, and what older versions recorded is read.
void check_dispatch_chunks(const ExperimentConfig& config, int64_t ep);

// On how many other ranks of its expert group a token has experts, if they are balanced.
[[nodiscard]] double remote_ranks(const ExperimentConfig& config);
// Bytes that a rank sends in a layer's forward and backward for one element of the hidden size. With TOKENS of one
// token; `recomputed` is the share of the layers whose adapters run a second time.
[[nodiscard]] double token_exchange_bytes(const ExperimentConfig& config, double recomputed);
// With WEIGHTS of one micro-batch; a layer is gathered `gathers` times: in the forward, and in the backward where it does
// not stand there still.
[[nodiscard]] double weight_exchange_bytes(const ExperimentConfig& config, double gathers);

}  // namespace pesc
