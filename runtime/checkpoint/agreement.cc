#include "runtime/checkpoint/agreement.h"

#include <algorithm>

namespace pesc {

Outcome attempt(const std::function<std::string()>& work) {
  try {
    return {ExitCode::kOk, work()};
  } catch (const Error& error) {
    return {error.code(), error.what()};
  } catch (const std::exception& error) {
    return {ExitCode::kInternal, error.what()};
  }
}

std::vector<Outcome> gather_outcomes(Communicator& world, const Outcome& mine) {
  const std::string message = static_cast<char>(mine.code) + mine.text;
  std::vector<Outcome> outcomes;
  for (const std::string& one : world.host_all_gather(message)) {
    PESC_CHECK(!one.empty(), "an empty outcome");
    outcomes.push_back({static_cast<ExitCode>(one[0]), one.substr(1)});
  }
  return outcomes;
}

void throw_first_error(const std::vector<Outcome>& outcomes, const std::string& context) {
  const auto failed =
      std::find_if(outcomes.begin(), outcomes.end(), [](const Outcome& o) { return !o.ok(); });
  if (failed == outcomes.end()) return;
  const auto others = std::count_if(failed + 1, outcomes.end(), [](const Outcome& o) { return !o.ok(); });
  std::string text = str_cat(context, ": rank ", failed - outcomes.begin(), ": ", failed->text);
  if (others > 0) text += str_cat(" (and ", others, " more ranks)");
  switch (failed->code) {
    case ExitCode::kUsage:
      throw UsageError(text);
    case ExitCode::kData:
      throw DataError(text);
    case ExitCode::kIo:
      throw IoError(text);
    default:
      throw InternalError(text);
  }
}

}  // namespace pesc
