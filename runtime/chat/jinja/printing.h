// Values as text: Python's str() and repr(), and json.dumps.
#pragma once

#include <string_view>

#include "runtime/chat/jinja/value.h"

namespace pesc::jinja {

// Python's str(). Text keeps its origin, within lists and mappings too.
[[nodiscard]] Text to_text(Heap& heap, const Value& value);
[[nodiscard]] std::string number_text(double number);  // repr(): the shortest that reads back

struct JsonStyle {
  bool ascii = false;
  bool sort_keys = false;
  int64_t indent = -1;  // negative: all in one line
  std::string indent_text;
  Text item_separator;
  Text key_separator;
};
// Python's json.dumps. Throws Failure for what has no JSON form.
[[nodiscard]] Text to_json(Heap& heap, const Value& value, const JsonStyle& style);

}  // namespace pesc::jinja
