// The tests of a template: {{ value is name }}.
#pragma once

#include <string_view>

#include "runtime/chat/jinja/filters.h"
#include "runtime/chat/jinja/value.h"

namespace pesc::jinja {

struct TestEntry {
  std::string_view name;
  bool (*holds)(Interpreter&, const Value&, Arguments&);
};

// As find_filter().
[[nodiscard]] const TestEntry* find_test(std::string_view name, int line);

}  // namespace pesc::jinja
