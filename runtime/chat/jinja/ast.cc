#include "runtime/chat/jinja/ast.h"

#include <algorithm>

#include "ops/core/check.h"

namespace pesc::jinja {
namespace {

constexpr size_t kMaxNames = 10'000;

}  // namespace

int Program::slot(std::string_view name) {
  if (const int found = find_slot(name); found >= 0) return found;
  if (names.size() == kMaxNames) fail(str_cat("the template has more than ", kMaxNames, " names"));
  names.emplace_back(name);
  return static_cast<int>(names.size()) - 1;
}

int Program::find_slot(std::string_view name) const {
  const auto found = std::ranges::find(names, name);
  return found == names.end() ? -1 : static_cast<int>(found - names.begin());
}

}  // namespace pesc::jinja
