// Filters of lists, and of what else can be gone through.
#include <algorithm>
#include <charconv>

#include "ops/core/check.h"
#include "runtime/chat/jinja/filters.h"
#include "runtime/chat/jinja/interpreter.h"
#include "runtime/chat/jinja/text_operations.h"

namespace pesc::jinja {
namespace {

Value without_case(Interpreter& in, const Value& value) {
  return value.is(Type::kString) ? in.heap().string(in_case(value.string->text, Case::kLower)) : value;
}

// The keys by which elements are sorted and told apart.
class Keys {
 public:
  Keys(Interpreter& in, Arguments& arguments) : in_(in) {
    case_sensitive_ = truthy(arguments.take("case_sensitive", Value(false)));
    attribute_ = arguments.take("attribute", Value::none());
    if (attribute_.is(Type::kString) && attribute_.bytes().find(',') != std::string::npos)
      fail("several attributes to sort by are not supported");
  }
  [[nodiscard]] Value of(const Value& item) const {
    const Value key = attribute_.is_none() ? item : attribute_path(in_, item, attribute_);
    return case_sensitive_ ? key : without_case(in_, key);
  }

 private:
  Interpreter& in_;
  bool case_sensitive_ = false;
  Value attribute_;
};

Value extreme(Interpreter& in, const Value& input, Arguments& arguments, int wanted) {
  const Keys keys(in, arguments);
  Value best;
  Value best_key;
  for (const Value& item : elements(in.heap(), input)) {
    const Value key = keys.of(item);
    if (best.undefined() || compare(in.heap(), key, best_key) == wanted) {
      best = item;
      best_key = key;
    }
  }
  return best;
}

Value selected(Interpreter& in, const Value& input, Arguments& arguments, bool with_attribute, bool wanted) {
  if (!truthy(input)) {
    arguments = {};
    return in.heap().list({}, ListKind::kGenerator);
  }
  const Value attribute = with_attribute ? arguments.need("") : Value::none();
  const Value test = arguments.take("", Value::none());
  if (!test.is_none() && !test.is(Type::kString)) fail("the name of a test is expected");
  const std::vector<Value> rest(arguments.positional.begin() + static_cast<ptrdiff_t>(arguments.taken),
                                arguments.positional.end());
  arguments.taken = arguments.positional.size();
  std::vector<Value> kept;
  for (const Value& item : elements(in.heap(), input)) {
    const Value value = with_attribute ? attribute_path(in, item, attribute) : item;
    Arguments of_test;
    of_test.positional = rest;
    const bool holds = test.is_none() ? truthy(value) : in.apply_test(test.bytes(), value, of_test);
    if (holds == wanted) kept.push_back(item);
  }
  return in.heap().list(std::move(kept), ListKind::kGenerator);
}

}  // namespace

Value attribute_path(Interpreter& in, const Value& item, const Value& path) {
  if (!path.is(Type::kString)) return in.item(item, path);
  Value value = item;
  for (const Text& step : split(in.heap(), path.string->text, ".", -1)) {
    int64_t index = 0;
    const auto read = std::from_chars(step.bytes.data(), step.bytes.data() + step.bytes.size(), index);
    const bool number = !step.bytes.empty() && step.bytes[0] != '-' && read.ec == std::errc() &&
                        read.ptr == step.bytes.data() + step.bytes.size();
    value = in.item(value, number ? Value(index) : in.heap().string(step));
  }
  return value;
}

Value filter_length(Interpreter& in, const Value& input, Arguments& /*arguments*/) {
  if (input.is(Type::kString)) in.heap().scan(input.bytes().size());
  const int64_t size = length(input);
  if (size < 0) fail(str_cat("a ", type_name(input), " has no length"));
  return Value(size);
}

Value filter_list(Interpreter& in, const Value& input, Arguments& /*arguments*/) {
  return in.heap().list(elements(in.heap(), input));
}

Value filter_first(Interpreter& in, const Value& input, Arguments& /*arguments*/) {
  const std::vector<Value> items = elements(in.heap(), input);
  return items.empty() ? Value() : items.front();
}

Value filter_last(Interpreter& in, const Value& input, Arguments& /*arguments*/) {
  if (input.is(Type::kList) && input.list->kind == ListKind::kGenerator)
    fail("the filter 'last' needs a list; the filter 'list' makes one");
  const std::vector<Value> items = elements(in.heap(), input);
  return items.empty() ? Value() : items.back();
}

Value filter_reverse(Interpreter& in, const Value& input, Arguments& /*arguments*/) {
  std::vector<Value> items = elements(in.heap(), input);
  std::ranges::reverse(items);
  if (!input.is(Type::kString)) return in.heap().list(std::move(items), ListKind::kGenerator);
  Text out;
  for (const Value& item : items) out.append(item.string->text);
  return in.heap().string(std::move(out));
}

Value filter_sort(Interpreter& in, const Value& input, Arguments& arguments) {
  const bool reverse = truthy(arguments.take("reverse", Value(false)));
  const Keys keys(in, arguments);
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : elements(in.heap(), input)) keyed.emplace_back(keys.of(item), item);
  std::ranges::stable_sort(keyed, [&](const auto& a, const auto& b) {
    const int order = compare(in.heap(), a.first, b.first);
    return reverse ? order > 0 : order < 0;
  });
  std::vector<Value> out;
  for (const auto& [key, item] : keyed) out.push_back(item);
  return in.heap().list(std::move(out));
}

Value filter_unique(Interpreter& in, const Value& input, Arguments& arguments) {
  const Keys keys(in, arguments);
  std::vector<Value> seen;
  std::vector<Value> out;
  for (const Value& item : elements(in.heap(), input)) {
    const Value key = keys.of(item);
    if (std::ranges::any_of(seen, [&](const Value& other) { return equal(in.heap(), key, other); })) continue;
    seen.push_back(key);
    out.push_back(item);
  }
  return in.heap().list(std::move(out), ListKind::kGenerator);
}

Value filter_min(Interpreter& in, const Value& input, Arguments& arguments) {
  return extreme(in, input, arguments, -1);
}

Value filter_max(Interpreter& in, const Value& input, Arguments& arguments) {
  return extreme(in, input, arguments, 1);
}

Value filter_sum(Interpreter& in, const Value& input, Arguments& arguments) {
  const Value attribute = arguments.take("attribute", Value::none());
  Value total = arguments.take("start", Value(int64_t{0}));
  for (const Value& item : elements(in.heap(), input)) {
    total = arithmetic(in.heap(), Op::kAdd, total,
                       attribute.is_none() ? item : attribute_path(in, item, attribute));
  }
  return total;
}

Value filter_map(Interpreter& in, const Value& input, Arguments& arguments) {
  std::vector<Value> out;
  if (!truthy(input)) {
    arguments = {};
    return in.heap().list({}, ListKind::kGenerator);
  }
  if (arguments.positional.empty()) {
    const Value attribute = arguments.need("attribute");
    const Value otherwise = arguments.take("default", Value::none());
    for (const Value& item : elements(in.heap(), input)) {
      const Value value = attribute_path(in, item, attribute);
      out.push_back(value.undefined() && !otherwise.is_none() ? otherwise : value);
    }
    return in.heap().list(std::move(out), ListKind::kGenerator);
  }
  const Value filter = arguments.need("");
  if (!filter.is(Type::kString)) fail("the filter 'map' takes the name of a filter");
  for (const Value& item : elements(in.heap(), input)) {
    Arguments of_filter;
    of_filter.positional.assign(arguments.positional.begin() + 1, arguments.positional.end());
    of_filter.named = arguments.named;
    out.push_back(in.apply_filter(filter.bytes(), item, of_filter));
  }
  arguments = {};
  return in.heap().list(std::move(out), ListKind::kGenerator);
}

Value filter_select(Interpreter& in, const Value& input, Arguments& arguments) {
  return selected(in, input, arguments, false, true);
}

Value filter_reject(Interpreter& in, const Value& input, Arguments& arguments) {
  return selected(in, input, arguments, false, false);
}

Value filter_selectattr(Interpreter& in, const Value& input, Arguments& arguments) {
  return selected(in, input, arguments, true, true);
}

Value filter_rejectattr(Interpreter& in, const Value& input, Arguments& arguments) {
  return selected(in, input, arguments, true, false);
}

}  // namespace pesc::jinja
