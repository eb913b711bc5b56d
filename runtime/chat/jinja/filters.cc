// The table of filters, their arguments, and the small ones.
#include "runtime/chat/jinja/filters.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>

#include "ops/core/check.h"
#include "runtime/chat/jinja/functions.h"
#include "runtime/chat/jinja/interpreter.h"
#include "runtime/chat/jinja/printing.h"
#include "runtime/chat/jinja/text_operations.h"

namespace pesc::jinja {
namespace {

Value filter_default(Interpreter& in, const Value& input, Arguments& arguments) {
  const Value otherwise = arguments.take("default_value", in.heap().string(Text()));
  const bool also_false = truthy(arguments.take("boolean", Value(false)));
  return input.undefined() || (also_false && !truthy(input)) ? otherwise : input;
}

Value filter_items(Interpreter& in, const Value& input, Arguments& /*arguments*/) {
  if (input.undefined()) return in.heap().list({}, ListKind::kGenerator);
  if (!input.is(Type::kDict)) fail(str_cat("the filter 'items' takes a mapping, not a ", type_name(input)));
  Arguments none;
  const Value view = call_method(in, input, "items", none);
  return in.heap().list(view.list->items, ListKind::kGenerator);
}

Value filter_dictsort(Interpreter& in, const Value& input, Arguments& arguments) {
  const bool case_sensitive = truthy(arguments.take("case_sensitive", Value(false)));
  const Value by = arguments.take("by", Value::none());
  const bool reverse = truthy(arguments.take("reverse", Value(false)));
  require_defined(input);
  if (!input.is(Type::kDict))
    fail(str_cat("the filter 'dictsort' takes a mapping, not a ", type_name(input)));
  const bool by_value = by.is(Type::kString) && by.bytes() == "value";
  if (!by_value && !by.is_none() && !(by.is(Type::kString) && by.bytes() == "key"))
    fail("the filter 'dictsort' sorts by \"key\" or \"value\"");
  std::vector<std::pair<Value, const std::pair<Value, Value>*>> keyed;
  for (const auto& item : input.dict->items) {
    Value key = by_value ? item.second : item.first;
    if (!case_sensitive && key.is(Type::kString))
      key = in.heap().string(in_case(key.string->text, Case::kLower));
    keyed.emplace_back(key, &item);
  }
  std::ranges::stable_sort(keyed, [&](const auto& a, const auto& b) {
    const int order = compare(in.heap(), a.first, b.first);
    return reverse ? order > 0 : order < 0;
  });
  std::vector<Value> out;
  for (const auto& [key, item] : keyed)
    out.push_back(in.heap().list({item->first, item->second}, ListKind::kTuple));
  return in.heap().list(std::move(out));
}

// A number that the whole of the text is, less white space around it; underscores between digits are not
// taken.
template <class Number>
bool read_number(std::string_view text, Number& number) {
  constexpr std::string_view kSpaces = " \t\n\r\v\f";
  const size_t begin = std::min(text.find_first_not_of(kSpaces), text.size());
  text = text.substr(begin, text.find_last_not_of(kSpaces) + 1 - begin);
  if (text.starts_with('+')) text.remove_prefix(1);
  const auto read = std::from_chars(text.data(), text.data() + text.size(), number);
  return !text.empty() && read.ec == std::errc() && read.ptr == text.data() + text.size();
}

Value cut_to_whole(double number, const Value& otherwise) {
  if (!std::isfinite(number)) return otherwise;
  if (std::abs(number) >= 9.2e18) fail("a whole number does not fit 64 bits");
  return Value(static_cast<int64_t>(number));
}

Value filter_int(Interpreter& /*in*/, const Value& input, Arguments& arguments) {
  const Value otherwise = arguments.take("default", Value(int64_t{0}));
  const Value base = arguments.take("base", Value(int64_t{10}));
  if (!base.is(Type::kInt) || base.integer != 10) fail("the filter 'int' with a base is not supported");
  require_defined(input);
  if (input.is(Type::kInt)) return input;
  if (input.is(Type::kBool)) return Value(static_cast<int64_t>(input.boolean));
  if (input.is(Type::kFloat)) return cut_to_whole(input.number, otherwise);
  if (!input.is(Type::kString)) return otherwise;
  int64_t whole = 0;
  double number = 0;
  if (read_number(input.bytes(), whole)) return Value(whole);
  return read_number(input.bytes(), number) ? cut_to_whole(number, otherwise) : otherwise;
}

Value filter_float(Interpreter& /*in*/, const Value& input, Arguments& arguments) {
  const Value otherwise = arguments.take("default", Value(0.0));
  require_defined(input);
  double number = 0;
  if (is_number(input)) return Value(as_double(input));
  return input.is(Type::kString) && read_number(input.bytes(), number) ? Value(number) : otherwise;
}

Value filter_abs(Interpreter& in, const Value& input, Arguments& /*arguments*/) {
  require_defined(input);
  if (!is_number(input)) fail(str_cat("the filter 'abs' takes a number, not a ", type_name(input)));
  if (input.is(Type::kFloat)) return Value(std::abs(input.number));
  if (input.is(Type::kBool)) return Value(static_cast<int64_t>(input.boolean));
  return input.integer < 0 ? arithmetic(in.heap(), Op::kSubtract, Value(int64_t{0}), input) : input;
}

Value filter_round(Interpreter& /*in*/, const Value& input, Arguments& arguments) {
  const Value precision = arguments.take("precision", Value(int64_t{0}));
  const Value method = arguments.take("method", Value::none());
  require_defined(input);
  if (!is_number(input)) fail(str_cat("the filter 'round' takes a number, not a ", type_name(input)));
  if (!precision.is(Type::kInt) || precision.integer != 0 || !method.is_none())
    fail("the filter 'round' is supported without arguments");
  if (!input.is(Type::kFloat)) return input;
  return Value(std::nearbyint(input.number));  // halves to even, as Python
}

constexpr std::array kFilters = std::to_array<FilterEntry>({
    {"abs", filter_abs},
    {"capitalize", filter_capitalize},
    {"count", filter_length},
    {"d", filter_default},
    {"default", filter_default},
    {"dictsort", filter_dictsort},
    {"e", filter_escape},
    {"escape", filter_escape},
    {"first", filter_first},
    {"float", filter_float},
    {"indent", filter_indent},
    {"int", filter_int},
    {"items", filter_items},
    {"join", filter_join},
    {"last", filter_last},
    {"length", filter_length},
    {"list", filter_list},
    {"lower", filter_lower},
    {"map", filter_map},
    {"max", filter_max},
    {"min", filter_min},
    {"reject", filter_reject},
    {"rejectattr", filter_rejectattr},
    {"replace", filter_replace},
    {"reverse", filter_reverse},
    {"round", filter_round},
    {"safe", filter_safe},
    {"select", filter_select},
    {"selectattr", filter_selectattr},
    {"sort", filter_sort},
    {"string", filter_string},
    {"sum", filter_sum},
    {"title", filter_title},
    {"tojson", filter_tojson},
    {"trim", filter_trim},
    {"unique", filter_unique},
    {"upper", filter_upper},
});

constexpr std::array kOtherFilters = std::to_array<std::string_view>(
    {"attr", "batch", "center", "filesizeformat", "forceescape", "format", "groupby", "pprint", "random",
     "slice", "striptags", "truncate", "urlencode", "urlize", "wordcount", "wordwrap", "xmlattr"});

}  // namespace

Value Arguments::take(std::string_view name, const Value& otherwise) {
  if (taken < positional.size()) return positional[taken++];
  const auto found =
      name.empty() ? named.end() : std::ranges::find(named, name, &std::pair<std::string, Value>::first);
  if (found == named.end()) return otherwise;
  const Value value = found->second;
  named.erase(found);
  return value;
}

Value Arguments::need(std::string_view name) {
  if (taken == positional.size() &&
      (name.empty() || std::ranges::find(named, name, &std::pair<std::string, Value>::first) == named.end()))
    fail(name.empty() ? "an argument is missing" : str_cat("the argument '", name, "' is missing"));
  return take(name, {});
}

void Arguments::end() const {
  if (taken < positional.size())
    fail(str_cat(positional.size(), " arguments are given where ", taken, " are taken"));
  if (!named.empty()) fail(str_cat("there is no argument '", named.front().first, "'"));
}

const FilterEntry* find_filter(std::string_view name, int line) {
  const auto found = std::ranges::lower_bound(kFilters, name, {}, &FilterEntry::name);
  if (found != kFilters.end() && found->name == name) return &*found;
  if (std::ranges::binary_search(kOtherFilters, name))
    fail(str_cat("the filter '", name, "' is not supported"), line);
  return nullptr;
}

}  // namespace pesc::jinja
