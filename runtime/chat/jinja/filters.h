// The filters of a template: {{ value | name(arguments) }}.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/chat/jinja/value.h"

namespace pesc::jinja {

class Interpreter;

// The arguments of a call. What it takes it marks as used, so that the rest can be refused.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
  size_t taken = 0;  // of the positional ones

  // The next positional argument, or the named one; `otherwise` where there is neither.
  Value take(std::string_view name, const Value& otherwise);
  // As take(); throws Failure where there is neither.
  Value need(std::string_view name);
  // Throws Failure when an argument has not been taken.
  void end() const;
};

struct FilterEntry {
  std::string_view name;
  Value (*apply)(Interpreter&, const Value& input, Arguments&);
};

// Null for a name that Jinja does not know either: using it is an error when it is reached. Throws Failure
// for a filter of Jinja that is not supported.
[[nodiscard]] const FilterEntry* find_filter(std::string_view name, int line);

// item.path, where the path may have dots and numbers ("function.name", "0.text").
Value attribute_path(Interpreter&, const Value& item, const Value& path);

// By file: of text, of sequences, of mappings and numbers.
Value filter_trim(Interpreter&, const Value&, Arguments&);
Value filter_upper(Interpreter&, const Value&, Arguments&);
Value filter_lower(Interpreter&, const Value&, Arguments&);
Value filter_title(Interpreter&, const Value&, Arguments&);
Value filter_capitalize(Interpreter&, const Value&, Arguments&);
Value filter_replace(Interpreter&, const Value&, Arguments&);
Value filter_indent(Interpreter&, const Value&, Arguments&);
Value filter_string(Interpreter&, const Value&, Arguments&);
Value filter_safe(Interpreter&, const Value&, Arguments&);
Value filter_escape(Interpreter&, const Value&, Arguments&);
Value filter_tojson(Interpreter&, const Value&, Arguments&);
Value filter_join(Interpreter&, const Value&, Arguments&);

Value filter_length(Interpreter&, const Value&, Arguments&);
Value filter_list(Interpreter&, const Value&, Arguments&);
Value filter_first(Interpreter&, const Value&, Arguments&);
Value filter_last(Interpreter&, const Value&, Arguments&);
Value filter_reverse(Interpreter&, const Value&, Arguments&);
Value filter_sort(Interpreter&, const Value&, Arguments&);
Value filter_unique(Interpreter&, const Value&, Arguments&);
Value filter_min(Interpreter&, const Value&, Arguments&);
Value filter_max(Interpreter&, const Value&, Arguments&);
Value filter_sum(Interpreter&, const Value&, Arguments&);
Value filter_map(Interpreter&, const Value&, Arguments&);
Value filter_select(Interpreter&, const Value&, Arguments&);
Value filter_reject(Interpreter&, const Value&, Arguments&);
Value filter_selectattr(Interpreter&, const Value&, Arguments&);
Value filter_rejectattr(Interpreter&, const Value&, Arguments&);

}  // namespace pesc::jinja
