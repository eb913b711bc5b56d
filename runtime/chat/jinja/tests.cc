#include "runtime/chat/jinja/tests.h"

#include <algorithm>
#include <array>

#include "ops/core/check.h"
#include "runtime/chat/jinja/interpreter.h"
#include "runtime/chat/jinja/printing.h"

namespace pesc::jinja {
namespace {

int64_t rest_of(Interpreter& in, const Value& value, const Value& by) {
  const Value rest = arithmetic(in.heap(), Op::kModulo, value, by);
  return rest.is(Type::kInt) ? rest.integer : rest.number == 0 ? 0 : rest.number == 1 ? 1 : 2;
}

template <Type T>
bool of_type(Interpreter& /*in*/, const Value& value, Arguments& /*arguments*/) {
  return value.is(T);
}

bool defined(Interpreter& /*in*/, const Value& value, Arguments& /*arguments*/) {
  return !value.undefined();
}
bool test_true(Interpreter& /*in*/, const Value& value, Arguments& /*arguments*/) {
  return value.is(Type::kBool) && value.boolean;
}
bool test_false(Interpreter& /*in*/, const Value& value, Arguments& /*arguments*/) {
  return value.is(Type::kBool) && !value.boolean;
}
bool number(Interpreter& /*in*/, const Value& value, Arguments& /*arguments*/) {
  return is_number(value);
}
bool iterable(Interpreter& /*in*/, const Value& value, Arguments& /*arguments*/) {
  return value.undefined() || value.is(Type::kString) || value.is(Type::kList) || value.is(Type::kDict) ||
         value.is(Type::kLoop);
}
bool sequence(Interpreter& /*in*/, const Value& value, Arguments& /*arguments*/) {
  if (value.is(Type::kList))
    return value.list->kind != ListKind::kGenerator && value.list->kind != ListKind::kView;
  return value.undefined() || value.is(Type::kString) || value.is(Type::kDict);
}
bool callable(Interpreter& /*in*/, const Value& value, Arguments& /*arguments*/) {
  return value.is(Type::kMacro) || value.is(Type::kMethod) || value.is(Type::kFunction) || value.undefined();
}
bool odd(Interpreter& in, const Value& value, Arguments& /*arguments*/) {
  return rest_of(in, value, Value(int64_t{2})) == 1;
}
bool even(Interpreter& in, const Value& value, Arguments& /*arguments*/) {
  return rest_of(in, value, Value(int64_t{2})) == 0;
}
bool divisible_by(Interpreter& in, const Value& value, Arguments& arguments) {
  return rest_of(in, value, arguments.need("num")) == 0;
}
bool same_as(Interpreter& /*in*/, const Value& value, Arguments& arguments) {
  const Value other = arguments.need("other");
  if (value.type != other.type) return false;
  switch (value.type) {
    case Type::kNone:
      return true;
    case Type::kBool:
      return value.boolean == other.boolean;
    case Type::kList:
      return value.list == other.list;
    case Type::kDict:
      return value.dict == other.dict;
    default:
      fail(str_cat("the test 'sameas' of a ", type_name(value), " is not supported"));
  }
}
bool test_in(Interpreter& in, const Value& value, Arguments& arguments) {
  return contains(in.heap(), arguments.need("seq"), value);
}
bool equal_to(Interpreter& in, const Value& value, Arguments& arguments) {
  return equal(in.heap(), value, arguments.need(""));
}
bool unequal_to(Interpreter& in, const Value& value, Arguments& arguments) {
  return !equal(in.heap(), value, arguments.need(""));
}
bool less(Interpreter& in, const Value& value, Arguments& arguments) {
  return compare(in.heap(), value, arguments.need("")) < 0;
}
bool less_or_equal(Interpreter& in, const Value& value, Arguments& arguments) {
  return compare(in.heap(), value, arguments.need("")) <= 0;
}
bool greater(Interpreter& in, const Value& value, Arguments& arguments) {
  return compare(in.heap(), value, arguments.need("")) > 0;
}
bool greater_or_equal(Interpreter& in, const Value& value, Arguments& arguments) {
  return compare(in.heap(), value, arguments.need("")) >= 0;
}

constexpr std::array kTests = std::to_array<TestEntry>({
    {"!=", unequal_to},
    {"<", less},
    {"<=", less_or_equal},
    {"==", equal_to},
    {">", greater},
    {">=", greater_or_equal},
    {"boolean", of_type<Type::kBool>},
    {"callable", callable},
    {"defined", defined},
    {"divisibleby", divisible_by},
    {"eq", equal_to},
    {"equalto", equal_to},
    {"even", even},
    {"false", test_false},
    {"float", of_type<Type::kFloat>},
    {"ge", greater_or_equal},
    {"greaterthan", greater},
    {"gt", greater},
    {"in", test_in},
    {"integer", of_type<Type::kInt>},
    {"iterable", iterable},
    {"le", less_or_equal},
    {"lessthan", less},
    {"lt", less},
    {"mapping", of_type<Type::kDict>},
    {"ne", unequal_to},
    {"none", of_type<Type::kNone>},
    {"number", number},
    {"odd", odd},
    {"sameas", same_as},
    {"sequence", sequence},
    {"string", of_type<Type::kString>},
    {"true", test_true},
    {"undefined", of_type<Type::kUndefined>},
});

constexpr std::array kOtherTests =
    std::to_array<std::string_view>({"escaped", "filter", "lower", "test", "upper"});

}  // namespace

const TestEntry* find_test(std::string_view name, int line) {
  const auto found = std::ranges::lower_bound(kTests, name, {}, &TestEntry::name);
  if (found != kTests.end() && found->name == name) return &*found;
  if (std::ranges::binary_search(kOtherTests, name))
    fail(str_cat("the test '", name, "' is not supported"), line);
  return nullptr;
}

}  // namespace pesc::jinja
