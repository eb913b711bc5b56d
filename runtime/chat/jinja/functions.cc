#include "runtime/chat/jinja/functions.h"

#include <array>
#include <charconv>
#include <ctime>
#include <string>

#include "ops/core/check.h"
#include "runtime/chat/jinja/printing.h"

namespace pesc::jinja {
namespace {

constexpr int64_t kMaxRange = 100'000;  // as the sandbox of Jinja

void take_pairs(Interpreter& in, Arguments& arguments, const auto& set) {
  if (!arguments.positional.empty()) {
    const Value given = arguments.need("");
    if (!given.is(Type::kDict)) fail(str_cat("a mapping is made of a ", type_name(given)));
    in.note_whole(given);
    for (const auto& [key, value] : given.dict->items) set(key, value);
  }
  for (const auto& [name, value] : arguments.named) set(in.heap().string(name), value);
  arguments.named.clear();
  arguments.end();
}

Value make_namespace(Interpreter& in, Arguments& arguments) {
  auto* made = in.heap().make<Namespace>();
  take_pairs(in, arguments, [&](const Value& key, const Value& value) {
    if (!key.is(Type::kString) || key.bytes().starts_with('_'))
      fail("a namespace has names only that do not begin with an underscore");
    in.heap().charge(sizeof(Value) + key.bytes().size());
    made->set(key.bytes(), value);
  });
  return Value(made);
}

Value make_dict(Interpreter& in, Arguments& arguments) {
  auto* made = in.heap().make<Dict>();
  take_pairs(in, arguments, [&](const Value& key, const Value& value) {
    in.heap().charge(2 * sizeof(Value));
    made->set(key, value);
  });
  return Value(static_cast<const Dict*>(made));
}

int64_t range_number(const Value& value) {
  require_defined(value);
  if (value.is(Type::kBool)) return static_cast<int64_t>(value.boolean);
  if (!value.is(Type::kInt)) fail(str_cat("range() takes whole numbers, not a ", type_name(value)));
  return value.integer;
}

Value make_range(Interpreter& in, Arguments& arguments) {
  const size_t given = arguments.positional.size();
  if (given < 1 || given > 3) fail("range() takes one to three numbers");
  int64_t start = range_number(arguments.need(""));
  int64_t stop = given > 1 ? range_number(arguments.need("")) : std::exchange(start, 0);
  const int64_t step = given > 2 ? range_number(arguments.need("")) : 1;
  arguments.end();
  if (step == 0) fail("the step of a range is 0");
  const auto distance = static_cast<__int128>(step > 0 ? 1 : -1) * (static_cast<__int128>(stop) - start);
  const __int128 stride = step > 0 ? step : -static_cast<__int128>(step);
  const __int128 count = distance <= 0 ? 0 : (distance + stride - 1) / stride;
  if (count > kMaxRange) fail(str_cat("a range has more than ", kMaxRange, " numbers"));
  in.heap().step(static_cast<int64_t>(count));
  std::vector<Value> items;
  for (int64_t i = 0; i < static_cast<int64_t>(count); ++i) items.emplace_back(start + i * step);
  return in.heap().list(std::move(items), ListKind::kRange);
}

Value raise_exception(Interpreter& in, Arguments& arguments) {
  const Value message = arguments.need("message");
  arguments.end();
  throw Failure(str_cat("the template refuses the conversation: ", to_text(in.heap(), message).bytes));
}

Value strftime_now(Interpreter& in, Arguments& arguments) {
  const Value format = arguments.need("format");
  arguments.end();
  if (!format.is(Type::kString)) fail("strftime_now() takes a format");
  const std::string_view date = in.date();
  if (date.empty()) {
    fail(
        "the template asks for today's date (strftime_now), which would make every run another one; set "
        "data.template_date to a date, as \"2025-01-31\"");
  }
  std::tm time{};
  const auto number = [&](size_t at, size_t size) {
    int value = 0;
    std::from_chars(date.data() + at, date.data() + at + size, value);
    return value;
  };
  time.tm_year = number(0, 4) - 1900;
  time.tm_mon = number(5, 2) - 1;
  time.tm_mday = number(8, 2);
  time.tm_isdst = 0;
  ::timegm(&time);  // fills in the days of the week and of the year
  if (format.bytes().size() > 200 || format.bytes().find('\0') != std::string::npos)
    fail("the format of strftime_now() is too long");
  std::array<char, 4096> text{};
  const size_t size = std::strftime(text.data(), text.size(), format.bytes().c_str(), &time);
  return in.heap().string(std::string_view(text.data(), size));
}

Value refused(Interpreter& /*in*/, Arguments& /*arguments*/) {
  fail("lipsum(), cycler() and joiner() are not supported");
}

const std::array<Function, 8>& functions() {
  static const std::array<Function, 8> kFunctions = [] {
    std::array<Function, 8> made;
    size_t i = 0;
    const auto add = [&](std::string_view name, Value (*call)(Interpreter&, Arguments&)) {
      made[i].name = name;
      made[i++].call = call;
    };
    add("namespace", make_namespace);
    add("dict", make_dict);
    add("range", make_range);
    add("raise_exception", raise_exception);
    add("strftime_now", strftime_now);
    for (const char* name : {"lipsum", "cycler", "joiner"}) add(name, refused);
    return made;
  }();
  return kFunctions;
}

}  // namespace

std::span<const Function> global_functions() {
  return functions();
}

}  // namespace pesc::jinja
