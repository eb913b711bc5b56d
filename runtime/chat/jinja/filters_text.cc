// Filters of text.
#include <algorithm>
#include <optional>
#include <string>

#include "ops/core/check.h"
#include "runtime/chat/jinja/filters.h"
#include "runtime/chat/jinja/interpreter.h"
#include "runtime/chat/jinja/printing.h"
#include "runtime/chat/jinja/text_operations.h"

namespace pesc::jinja {
namespace {

Text input_text(Interpreter& in, const Value& input) {
  Text text = to_text(in.heap(), input);
  in.heap().scan(text.bytes.size());
  return text;
}

}  // namespace

Value filter_trim(Interpreter& in, const Value& input, Arguments& arguments) {
  const Value chars = arguments.take("chars", Value::none());
  std::optional<std::string_view> set;
  if (chars.is(Type::kString)) set = chars.bytes();
  return in.heap().string(stripped(input_text(in, input), set, Ends::kBoth));
}

Value filter_upper(Interpreter& in, const Value& input, Arguments& /*arguments*/) {
  return in.heap().string(in_case(input_text(in, input), Case::kUpper));
}

Value filter_lower(Interpreter& in, const Value& input, Arguments& /*arguments*/) {
  return in.heap().string(in_case(input_text(in, input), Case::kLower));
}

Value filter_title(Interpreter& in, const Value& input, Arguments& /*arguments*/) {
  return in.heap().string(titled_words(input_text(in, input)));
}

Value filter_capitalize(Interpreter& in, const Value& input, Arguments& /*arguments*/) {
  return in.heap().string(capitalized(input_text(in, input)));
}

Value filter_replace(Interpreter& in, const Value& input, Arguments& arguments) {
  const Text old = to_text(in.heap(), arguments.need("old"));
  const Text by = to_text(in.heap(), arguments.need("new"));
  const Value count = arguments.take("count", Value::none());
  if (!count.is_none() && !count.is(Type::kInt)) fail("the count of the filter 'replace' is no whole number");
  const int64_t most = count.is_none() ? -1 : count.integer;
  return in.heap().string(replaced(in.heap(), input_text(in, input), old.bytes, by, most));
}

Value filter_indent(Interpreter& in, const Value& input, Arguments& arguments) {
  const Value width = arguments.take("width", Value(int64_t{4}));
  const bool first = truthy(arguments.take("first", Value(false)));
  const bool blank = truthy(arguments.take("blank", Value(false)));
  require_defined(input);
  if (!input.is(Type::kString)) fail(str_cat("the filter 'indent' takes a string, not a ", type_name(input)));
  if (width.is(Type::kInt) && width.integer > 10'000) fail("the filter 'indent' indents by more than 10000");
  Text indent;
  if (width.is(Type::kString)) {
    indent = width.string->text;
  } else if (width.is(Type::kInt)) {
    indent.append(std::string(static_cast<size_t>(std::max<int64_t>(width.integer, 0)), ' '));
  } else {
    fail("the width of the filter 'indent' is neither a number nor a string");
  }
  Heap& heap = in.heap();
  Text text = input_text(in, input);
  text.append("\n");
  Text out;
  const std::vector<Text> lines = split_lines(heap, text);
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out.append("\n");
    if (i == 0 ? first : (blank || !lines[i].bytes.empty())) {
      heap.charge(indent.bytes.size());
      out.append(indent);
    }
    out.append(lines[i]);
  }
  return heap.string(std::move(out));
}

Value filter_string(Interpreter& in, const Value& input, Arguments& /*arguments*/) {
  return input.is(Type::kString) ? input : in.heap().string(to_text(in.heap(), input));
}

Value filter_safe(Interpreter& in, const Value& input, Arguments& /*arguments*/) {
  return in.heap().string(to_text(in.heap(), input), true);
}

Value filter_escape(Interpreter& in, const Value& input, Arguments& /*arguments*/) {
  if (input.is(Type::kString) && input.string->safe) return input;
  return in.heap().string(escaped(in.heap(), input_text(in, input)), true);
}

Value filter_tojson(Interpreter& in, const Value& input, Arguments& arguments) {
  JsonStyle style;
  style.ascii = truthy(arguments.take("ensure_ascii", Value(false)));
  const Value indent = arguments.take("indent", Value::none());
  const Value separators = arguments.take("separators", Value::none());
  style.sort_keys = truthy(arguments.take("sort_keys", Value(false)));
  if (indent.is(Type::kString)) {
    style.indent = 0;
    style.indent_text = indent.bytes();
  } else if (indent.is(Type::kInt)) {
    if (indent.integer > 1000) fail("the filter 'tojson' indents by more than 1000");
    style.indent = std::max<int64_t>(indent.integer, 0);
    style.indent_text = std::string(static_cast<size_t>(style.indent), ' ');
  } else if (!indent.is_none()) {
    fail("the indent of the filter 'tojson' is neither a number nor a string");
  }
  style.item_separator.append(style.indent < 0 ? ", " : ",");
  style.key_separator.append(": ");
  if (separators.is(Type::kList) && separators.list->items.size() == 2 &&
      separators.list->items[0].is(Type::kString) && separators.list->items[1].is(Type::kString)) {
    style.item_separator = separators.list->items[0].string->text;
    style.key_separator = separators.list->items[1].string->text;
  } else if (!separators.is_none()) {
    fail("the separators of the filter 'tojson' are not two strings");
  }
  return in.heap().string(to_json(in.heap(), input, style));
}

Value filter_join(Interpreter& in, const Value& input, Arguments& arguments) {
  const Value between = arguments.take("d", in.heap().string(Text()));
  const Value attribute = arguments.take("attribute", Value::none());
  std::vector<Text> parts;
  for (Value item : elements(in.heap(), input)) {
    if (!attribute.is_none()) item = attribute_path(in, item, attribute);
    parts.push_back(to_text(in.heap(), item));
    in.heap().charge(sizeof(Text) + parts.back().bytes.size());
  }
  return in.heap().string(joined(in.heap(), parts, to_text(in.heap(), between)));
}

}  // namespace pesc::jinja
