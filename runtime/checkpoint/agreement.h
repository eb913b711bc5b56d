// Errors that all ranks share: a rank on which something failed must not leave the others waiting, and all
// must end with the same error.
#pragma once

#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "ops/core/check.h"
#include "parallel/communicator.h"

namespace pesc {

// The outcome of one rank's local work: bytes for the other ranks, or an error.
struct Outcome {
  ExitCode code = ExitCode::kOk;
  std::string text;  // the payload, or the error's message
  [[nodiscard]] bool ok() const { return code == ExitCode::kOk; }
};

// Runs `work`, which must not communicate, and turns whatever it throws into an Outcome.
[[nodiscard]] Outcome attempt(const std::function<std::string()>& work);

// Collective. All ranks' outcomes, in rank order.
[[nodiscard]] std::vector<Outcome> gather_outcomes(Communicator& world, const Outcome& mine);

// Throws, the same on every rank, the error of the lowest rank that has one: "CONTEXT: rank R: ...".
void throw_first_error(const std::vector<Outcome>& outcomes, const std::string& context);

}  // namespace pesc
