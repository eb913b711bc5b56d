// The methods of strings, lists and mappings.
#include <algorithm>
#include <array>
#include <optional>

#include "ops/core/check.h"
#include "runtime/chat/jinja/functions.h"
#include "runtime/chat/jinja/printing.h"
#include "runtime/chat/jinja/text_operations.h"

namespace pesc::jinja {
namespace {

// All of Python's names, so that what "x.index is defined" says is the same. In alphabetical order.
constexpr auto kOfStrings = std::to_array<std::string_view>(
    {"capitalize", "casefold",     "center",       "count",   "encode",     "endswith",    "expandtabs",
     "find",       "format",       "format_map",   "index",   "isalnum",    "isalpha",     "isascii",
     "isdecimal",  "isdigit",      "isidentifier", "islower", "isnumeric",  "isprintable", "isspace",
     "istitle",    "isupper",      "join",         "ljust",   "lower",      "lstrip",      "maketrans",
     "partition",  "removeprefix", "removesuffix", "replace", "rfind",      "rindex",      "rjust",
     "rpartition", "rsplit",       "rstrip",       "split",   "splitlines", "startswith",  "strip",
     "swapcase",   "title",        "translate",    "upper",   "zfill"});
constexpr auto kOfLists = std::to_array<std::string_view>(
    {"append", "clear", "copy", "count", "extend", "index", "insert", "pop", "remove", "reverse", "sort"});
constexpr auto kOfTuples = std::to_array<std::string_view>({"count", "index"});
constexpr auto kOfRanges = std::to_array<std::string_view>({"count", "index", "start", "step", "stop"});
constexpr auto kOfDicts =
    std::to_array<std::string_view>({"clear", "copy", "fromkeys", "get", "items", "keys", "pop", "popitem",
                                     "setdefault", "update", "values"});
constexpr auto kOfIntegers =
    std::to_array<std::string_view>({"as_integer_ratio", "bit_count", "bit_length", "conjugate",
                                     "denominator", "from_bytes", "imag", "numerator", "real", "to_bytes"});
constexpr auto kOfFloats = std::to_array<std::string_view>(
    {"as_integer_ratio", "conjugate", "fromhex", "hex", "imag", "is_integer", "real"});
// These change their object.
constexpr auto kForbidden =
    std::to_array<std::string_view>({"append", "clear", "extend", "insert", "pop", "popitem", "remove",
                                     "reverse", "setdefault", "sort", "update"});

std::span<const std::string_view> names_of(const Value& self) {
  switch (self.type) {
    case Type::kString:
      return kOfStrings;
    case Type::kDict:
      return kOfDicts;
    case Type::kBool:
    case Type::kInt:
      return kOfIntegers;
    case Type::kFloat:
      return kOfFloats;
    case Type::kList:
      switch (self.list->kind) {
        case ListKind::kList:
          return kOfLists;
        case ListKind::kTuple:
          return kOfTuples;
        case ListKind::kRange:
          return kOfRanges;
        default:
          return {};
      }
    default:
      return {};
  }
}

bool one_of(std::span<const std::string_view> names, std::string_view name) {
  return std::ranges::binary_search(names, name);
}

int64_t whole_or(const Value& value, int64_t otherwise) {
  if (value.is_none() || value.undefined()) return otherwise;
  if (!value.is(Type::kInt)) fail(str_cat("a whole number is expected, not a ", type_name(value)));
  return value.integer;
}

const std::string& string_of(const Value& value, std::string_view method) {
  require_defined(value);
  if (!value.is(Type::kString)) fail(str_cat(method, "() takes a string, not a ", type_name(value)));
  return value.bytes();
}

class StringMethods {
 public:
  StringMethods(Interpreter& in, const Text& text, std::string_view name, Arguments& arguments)
      : heap_(in.heap()), text_(text), name_(name), arguments_(arguments) {}

  Value call() {
    heap_.scan(text_.bytes.size());
    if (name_ == "strip") return strip(Ends::kBoth);
    if (name_ == "lstrip") return strip(Ends::kLeft);
    if (name_ == "rstrip") return strip(Ends::kRight);
    if (name_ == "split" || name_ == "rsplit") return split_it();
    if (name_ == "splitlines") return list(split_lines(heap_, text_));
    if (name_ == "startswith" || name_ == "endswith") return begins_or_ends();
    if (name_ == "replace") return replace();
    if (name_ == "upper") return heap_.string(in_case(text_, Case::kUpper));
    if (name_ == "lower") return heap_.string(in_case(text_, Case::kLower));
    if (name_ == "title") return heap_.string(titled(text_));
    if (name_ == "capitalize") return heap_.string(capitalized(text_));
    if (name_ == "format") return format();
    if (name_ == "join") return join();
    if (name_ == "find" || name_ == "rfind" || name_ == "index" || name_ == "count") return search();
    if (name_ == "removeprefix" || name_ == "removesuffix") return without_end();
    if (name_ == "isdigit" || name_ == "isdecimal" || name_ == "isnumeric") return digits_only();
    if (name_ == "isspace") return spaces_only();
    fail(str_cat("the method '", name_, "' of a string is not supported"));
  }

 private:
  Value list(std::vector<Text> parts) {
    std::vector<Value> items;
    for (Text& part : parts) items.push_back(heap_.string(std::move(part)));
    return heap_.list(std::move(items));
  }

  Value strip(Ends ends) {
    const Value chars = arguments_.take("", Value::none());
    std::optional<std::string_view> set;
    if (!chars.is_none()) set = string_of(chars, name_);
    return heap_.string(stripped(text_, set, ends));
  }

  Value split_it() {
    const Value separator = arguments_.take("sep", Value::none());
    const int64_t most = whole_or(arguments_.take("maxsplit", Value::none()), -1);
    if (separator.is_none()) {
      if (name_ == "rsplit" && most >= 0)
        fail("rsplit() at white space, at most so many times, is not supported");
      return list(split(heap_, text_, std::nullopt, most));
    }
    const std::string& at = string_of(separator, name_);
    if (at.empty()) fail(str_cat(name_, "() has an empty separator"));
    return list(name_ == "split" ? split(heap_, text_, at, most) : split_from_right(heap_, text_, at, most));
  }

  Value begins_or_ends() {
    const Value what = arguments_.need("");
    std::vector<Value> choices = {what};
    if (what.is(Type::kList) && what.list->kind == ListKind::kTuple) choices = what.list->items;
    for (const Value& choice : choices) {
      const std::string& wanted = string_of(choice, name_);
      if (name_ == "startswith" ? text_.bytes.starts_with(wanted) : text_.bytes.ends_with(wanted))
        return Value(true);
    }
    return Value(false);
  }

  Value replace() {
    const Value old = arguments_.need("");
    const Value by = arguments_.need("");
    const int64_t most = whole_or(arguments_.take("count", Value::none()), -1);
    string_of(by, name_);
    return heap_.string(replaced(heap_, text_, string_of(old, name_), by.string->text, most));
  }

  Value join() {
    std::vector<Text> parts;
    for (const Value& item : elements(heap_, arguments_.need(""))) {
      string_of(item, name_);
      heap_.charge(sizeof(Text) + item.bytes().size());
      parts.push_back(item.string->text);
    }
    return heap_.string(joined(heap_, parts, text_));
  }

  Value search() {
    const Value argument = arguments_.need("");
    const std::string& wanted = string_of(argument, name_);
    const std::string& bytes = text_.bytes;
    if (name_ == "count") {
      if (wanted.empty()) return Value(length_in_characters(bytes) + 1);
      int64_t count = 0;
      for (size_t at = find_text(bytes, wanted, 0); at != std::string::npos;
           at = find_text(bytes, wanted, at + wanted.size()))
        ++count;
      return Value(count);
    }
    size_t at = find_text(bytes, wanted, 0);
    if (name_ == "rfind") {
      for (size_t next = at; next != std::string::npos; next = find_text(bytes, wanted, next + 1)) {
        at = next;
        heap_.step();
      }
    }
    if (at != std::string::npos) return Value(length_in_characters(std::string_view(bytes).substr(0, at)));
    if (name_ == "index") fail("index() does not find the text");
    return Value(int64_t{-1});
  }
  static int64_t length_in_characters(std::string_view text) {
    return static_cast<int64_t>(count_characters(text));
  }

  Value without_end() {
    const Value argument = arguments_.need("");
    const std::string& end = string_of(argument, name_);
    const std::string& bytes = text_.bytes;
    if (name_ == "removeprefix" && bytes.starts_with(end))
      return heap_.string(part(text_, end.size(), bytes.size()));
    if (name_ == "removesuffix" && bytes.ends_with(end))
      return heap_.string(part(text_, 0, bytes.size() - end.size()));
    return heap_.string(text_);
  }

  Value digits_only() {
    bool digits = !text_.bytes.empty();
    for (const char c : text_.bytes) {
      if (static_cast<unsigned char>(c) >= 0x80)
        fail(str_cat(name_, "() of text that is not ASCII is not supported"));
      digits = digits && c >= '0' && c <= '9';
    }
    return Value(digits);
  }

  Value spaces_only() {
    return Value(!text_.bytes.empty() && stripped(text_, std::nullopt, Ends::kLeft).bytes.empty());
  }

  // "{}", "{0}", "{name}", and doubled braces; no format behind a colon.
  Value format() {
    Text out;
    size_t automatic = 0;
    const std::string& bytes = text_.bytes;
    for (size_t at = 0; at < bytes.size();) {
      const size_t brace = std::min(bytes.find_first_of("{}", at), bytes.size());
      out.append(text_, at, brace);
      at = brace;
      if (at == bytes.size()) break;
      if (at + 1 < bytes.size() && bytes[at + 1] == bytes[at]) {
        out.append(text_, at, at + 1);
        at += 2;
        continue;
      }
      const size_t end = bytes.find('}', at);
      if (bytes[at] == '}' || end == std::string::npos) fail("a brace in the text of format() has no other");
      const std::string field = bytes.substr(at + 1, end - at - 1);
      const Text filled = to_text(heap_, field_value(field, automatic));
      heap_.charge(filled.bytes.size());
      out.append(filled);
      at = end + 1;
    }
    arguments_.taken = arguments_.positional.size();
    arguments_.named.clear();
    return heap_.string(std::move(out));
  }

  Value field_value(const std::string& field, size_t& automatic) {
    if (field.find_first_of(":!.[{") != std::string::npos)
      fail(str_cat("format() of \"{", field, "}\" is not supported; names and numbers alone are"));
    if (field.empty() || field.find_first_not_of("0123456789") == std::string::npos) {
      const size_t index = field.empty()      ? automatic++
                           : field.size() > 3 ? arguments_.positional.size()
                                              : std::stoul(field);
      if (index >= arguments_.positional.size())
        fail("format() has fewer arguments than its text has braces");
      return arguments_.positional[index];
    }
    const auto named = std::ranges::find(arguments_.named, field, &std::pair<std::string, Value>::first);
    if (named == arguments_.named.end()) fail(str_cat("format() has no argument '", field, "'"));
    return named->second;
  }

  Heap& heap_;
  const Text& text_;
  std::string_view name_;
  Arguments& arguments_;
};

Value call_dict(Interpreter& in, const Dict& dict, std::string_view name, Arguments& arguments) {
  Heap& heap = in.heap();
  if (name == "get") {
    const Value key = arguments.need("");
    const Value otherwise = arguments.take("", Value::none());
    const Value* found = dict.find(key);
    if (found != nullptr) in.note_read(dict, *found);
    return found != nullptr ? *found : otherwise;
  }
  if (name != "keys") in.note_whole(Value(&dict));
  if (name == "copy") {
    auto* copy = heap.make<Dict>();
    heap.charge(dict.items.size() * 2 * sizeof(Value));
    for (const auto& [key, value] : dict.items) copy->set(key, value);
    copy->message = dict.message;
    return Value(static_cast<const Dict*>(copy));
  }
  if (name != "items" && name != "keys" && name != "values")
    fail(str_cat("the method '", name, "' of a mapping is not supported"));
  std::vector<Value> out;
  for (const auto& [key, value] : dict.items) {
    out.push_back(name == "keys"     ? key
                  : name == "values" ? value
                                     : heap.list({key, value}, ListKind::kTuple));
  }
  return heap.list(std::move(out), ListKind::kView);
}

Value call_list(Heap& heap, const List& list, std::string_view name, Arguments& arguments) {
  if (name == "copy") return heap.list(list.items);
  if (name != "count" && name != "index") fail(str_cat("the method '", name, "' of a list is not supported"));
  const Value wanted = arguments.need("");
  int64_t count = 0;
  for (size_t i = 0; i < list.items.size(); ++i) {
    if (!equal(heap, list.items[i], wanted)) continue;
    if (name == "index") return Value(static_cast<int64_t>(i));
    ++count;
  }
  if (name == "index") fail("index() does not find the value in the list");
  return Value(count);
}

}  // namespace

bool has_method(const Value& self, std::string_view name) {
  return one_of(names_of(self), name);
}

bool changes_object(const Value& self, std::string_view name) {
  return (self.is(Type::kList) || self.is(Type::kDict)) && has_method(self, name) && one_of(kForbidden, name);
}

Value call_method(Interpreter& in, const Value& self, std::string_view name, Arguments& arguments) {
  Value result;
  if (self.is(Type::kString)) {
    result = StringMethods(in, self.string->text, name, arguments).call();
  } else if (changes_object(self, name)) {
    fail(str_cat("'", name, "' would change a ", type_name(self),
                 ", which the sandbox of chat templates forbids"));
  } else if (self.is(Type::kDict)) {
    result = call_dict(in, *self.dict, name, arguments);
  } else if (self.is(Type::kList)) {
    result = call_list(in.heap(), *self.list, name, arguments);
  } else {
    fail(str_cat("the method '", name, "' of a ", type_name(self), " is not supported"));
  }
  arguments.end();
  return result;
}

}  // namespace pesc::jinja
