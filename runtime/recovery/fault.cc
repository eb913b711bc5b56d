#include "runtime/recovery/fault.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <csignal>
#include <span>
#include <sstream>
#include <utility>

#include "ops/core/check.h"

namespace pesc {
namespace {

constexpr std::array<const char*, 4> kSections{"setup", "step", "checkpoint", "eval"};
constexpr std::array<const char*, 7> kActions{"kill", "stop", "throw", "nan", "inf", "nan_loss", "inf_loss"};
constexpr const char* kActionNames = "kill|stop|throw|nan|inf|nan_loss|inf_loss";

template <class Enum>
bool read_name(const std::string& value, std::span<const char* const> names, Enum& out) {
  const auto found = std::find(names.begin(), names.end(), value);
  if (found == names.end()) return false;
  out = static_cast<Enum>(found - names.begin());
  return true;
}

template <class Number>
bool read_number(const std::string& value, Number& out) {
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), out);
  return error == std::errc() && end == value.data() + value.size() && out >= 0;
}

}  // namespace

const char* section_name(Section s) {
  return kSections[static_cast<size_t>(s)];
}

std::string parse_fault(const std::string& text, FaultPoint& out) {
  std::string commas = text;  // spaces are welcome: a list in --set ends its entries with commas
  std::replace(commas.begin(), commas.end(), ' ', ',');
  std::istringstream in(commas);
  bool action = false;
  for (std::string part; std::getline(in, part, ',');) {
    const size_t equals = part.find('=');
    const std::string key = part.substr(0, equals);
    const std::string value = equals == std::string::npos ? "" : part.substr(equals + 1);
    bool ok = false;
    if (key == "step") ok = read_number(value, out.step);
    if (key == "rank") ok = read_number(value, out.rank);
    if (key == "section") ok = read_name(value, kSections, out.section);
    if (key == "action") ok = action = read_name(value, kActions, out.action);
    if (part == "always") ok = out.always = true;
    if (!ok) {
      return str_cat("'", part,
                     "' is none of step=N, rank=N, section=setup|step|checkpoint|eval, action=", kActionNames,
                     ", always");
    }
  }
  if (!action) return str_cat("there is no action=", kActionNames);
  if (out.action >= FaultAction::kNan && out.section != Section::kStep)
    return str_cat(kActions[static_cast<size_t>(out.action)], " needs section=step");
  return "";
}

FaultPoints::FaultPoints(std::vector<FaultPoint> points, int rank, uint64_t launch_id)
    : points_(std::move(points)) {
  std::erase_if(points_, [&](const FaultPoint& p) { return p.rank != rank || (launch_id > 1 && !p.always); });
}

InjectedFault FaultPoints::fire(Section section, int64_t step) {
  const auto due = std::find_if(points_.begin(), points_.end(), [&](const FaultPoint& p) {
    return p.section == section && (p.step < 0 || p.step == step);
  });
  if (due == points_.end()) return InjectedFault::kNone;
  const FaultAction action = due->action;
  if (!due->always) points_.erase(due);
  switch (action) {
    case FaultAction::kKill:
      std::raise(SIGKILL);
      break;
    case FaultAction::kStop:
      std::raise(SIGSTOP);
      break;
    case FaultAction::kThrow:
      throw InternalError(str_cat("debug.fault in section ", section_name(section), " of step ", step));
    case FaultAction::kNan:
      return InjectedFault::kNanGradient;
    case FaultAction::kInf:
      return InjectedFault::kInfGradient;
    case FaultAction::kNanLoss:
      return InjectedFault::kNanLoss;
    case FaultAction::kInfLoss:
      return InjectedFault::kInfLoss;
  }
  return InjectedFault::kNone;
}

}  // namespace pesc
