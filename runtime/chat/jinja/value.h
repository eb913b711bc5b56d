// The values of a template. Strings carry where their text came from (origin); everything that a rendering
// makes lives in its Heap until the rendering ends, so that a Value is two words, copied freely, and nothing
// is counted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace pesc::jinja {

// What stops a rendering or a compilation.
struct Failure : std::runtime_error {
  explicit Failure(const std::string& what, int line_ = 0) : std::runtime_error(what), line(line_) {}
  int line;  // of the template, from 1; 0: not known, the interpreter fills it in
};
[[noreturn]] void fail(const std::string& what, int line = 0);

// Where a stretch of text came from: nothing (the template's own text), an assistant's message, or other data
// (messages of the system, the user and tools; descriptions of tools). kMarked is added inside {% generation
// %}.
using Origin = uint32_t;
inline constexpr Origin kOwnText = 0;
inline constexpr Origin kFromAssistant = 1;
inline constexpr Origin kFromData = 2;
inline constexpr Origin kMarked = 4;
[[nodiscard]] constexpr Origin origin_of(Origin kind, size_t message) {
  return kind | static_cast<Origin>(message) << 3U;
}
[[nodiscard]] constexpr size_t message_of(Origin origin) {
  return origin >> 3U;
}

struct Span {
  size_t begin = 0;
  size_t end = 0;
  Origin origin = kOwnText;
};

// UTF-8 text with the spans that have an origin: ascending, disjoint, none empty.
struct Text {
  std::string bytes;
  std::vector<Span> spans;

  Text() = default;
  explicit Text(std::string_view text, Origin origin = kOwnText) { append(text, origin); }
  void append(std::string_view text, Origin origin = kOwnText);
  void append(const Text& text) { append(text, 0, text.bytes.size()); }
  void append(const Text& text, size_t begin, size_t end);
  // Adds kMarked to all from `begin` on.
  void mark(size_t begin);
  [[nodiscard]] Origin origin_at(size_t offset) const;
};

struct Object {
  virtual ~Object() = default;
};

struct String : Object {
  Text text;
  bool safe = false;  // of the filter `safe`: what is added to it by + is escaped for HTML
};

struct Value;
struct List;
struct Dict;
struct Namespace;
struct Macro;
struct Method;
struct Function;
struct LoopState;

enum class Type : uint8_t {
  kUndefined,
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kList,
  kDict,
  kNamespace,
  kMacro,
  kMethod,
  kFunction,
  kLoop,
};

struct Value {
  Type type = Type::kUndefined;
  union {
    bool boolean;
    int64_t integer;
    double number;
    const String* string;
    const List* list;
    const Dict* dict;
    Namespace* ns;
    const Macro* macro;
    const Method* method;
    const Function* function;
    const LoopState* loop;
    const std::string* hint;  // of kUndefined: the name of what is not there, or null
  };

  Value() : hint(nullptr) {}
  explicit Value(bool value) : type(Type::kBool), boolean(value) {}
  explicit Value(int64_t value) : type(Type::kInt), integer(value) {}
  explicit Value(double value) : type(Type::kFloat), number(value) {}
  explicit Value(const String* value) : type(Type::kString), string(value) {}
  explicit Value(const List* value) : type(Type::kList), list(value) {}
  explicit Value(const Dict* value) : type(Type::kDict), dict(value) {}
  explicit Value(Namespace* value) : type(Type::kNamespace), ns(value) {}
  explicit Value(const Macro* value) : type(Type::kMacro), macro(value) {}
  explicit Value(const Method* value) : type(Type::kMethod), method(value) {}
  explicit Value(const Function* value) : type(Type::kFunction), function(value) {}
  explicit Value(const LoopState* value) : type(Type::kLoop), loop(value) {}
  // REQUIRES a name that outlives the value: of the program, or of a string of the heap.
  [[nodiscard]] static Value missing(const std::string* name) {
    Value value;
    value.hint = name;
    return value;
  }
  [[nodiscard]] static Value none() {
    Value value;
    value.type = Type::kNone;
    return value;
  }

  [[nodiscard]] bool is(Type t) const { return type == t; }
  [[nodiscard]] bool undefined() const { return type == Type::kUndefined; }
  [[nodiscard]] bool is_none() const { return type == Type::kNone; }
  [[nodiscard]] const std::string& bytes() const { return string->text.bytes; }  // REQUIRES a string
};

// Python's lists, tuples and what its filters and methods give lazily. The last three have no JSON form, and
// a generator has neither a length nor elements by index.
enum class ListKind : uint8_t { kList, kTuple, kGenerator, kView, kRange };

struct List : Object {
  ListKind kind = ListKind::kList;
  std::vector<Value> items;
};

struct Dict : Object {
  std::vector<std::pair<Value, Value>> items;  // in the order of insertion
  int64_t message = -1;                        // the number of the message that this is
  // REQUIRES a key that is a scalar (Failure otherwise: lists and mappings cannot be keys, tuples are not
  // supported).
  void set(const Value& key, const Value& value);
  // Null where there is no such key.
  [[nodiscard]] const Value* find(std::string_view key) const;
  [[nodiscard]] const Value* find(const Value& key) const;

 private:
  [[nodiscard]] size_t place(const Value& key) const;
  static constexpr size_t kIndexed = 12;
  std::unordered_map<std::string_view, size_t>
      index_;  // of string keys, once there are more than kIndexed items
};

struct Namespace : Object {
  std::vector<std::pair<std::string, Value>> items;
  void set(std::string_view name, const Value& value);
  [[nodiscard]] const Value* find(std::string_view name) const;
};

// A method with its object: message.items. Whether it is there at all is known; what it does, when it is
// called.
struct Method : Object {
  Value self;
  std::string name;
};

// `loop` inside {% for %}.
struct LoopState : Object {
  const std::vector<Value>* items = nullptr;
  size_t index = 0;
};

// Owns what one rendering makes, and counts it. Memory is given back at the end only, so the count bounds
// both the memory and the copying.
class Heap {
 public:
  Heap(int64_t memory, int64_t steps) : limit_(memory), steps_left_(steps), steps_(steps) {}
  template <class T>
  T* make() {
    charge(sizeof(T) + sizeof(void*));
    auto owned = std::make_unique<T>();
    T* raw = owned.get();
    objects_.push_back(std::move(owned));
    return raw;
  }
  // Throw Failure beyond the limit.
  void charge(size_t bytes);
  void step(int64_t n = 1) {
    steps_left_ -= n;
    if (steps_left_ < 0) too_many_steps();
  }
  void scan(size_t bytes) { step(1 + static_cast<int64_t>(bytes / 64)); }

  Value string(Text text, bool safe = false);
  Value string(std::string_view text, Origin origin = kOwnText) { return string(Text(text, origin)); }
  Value list(std::vector<Value> items, ListKind kind = ListKind::kList);

 private:
  [[noreturn]] void too_many_steps() const;
  int64_t limit_;
  int64_t used_ = 0;
  int64_t steps_left_;
  int64_t steps_;
  std::vector<std::unique_ptr<Object>> objects_;
};

// As Python names it in messages: "str", "list", "NoneType".
[[nodiscard]] std::string_view type_name(const Value& value);
[[nodiscard]] bool truthy(const Value& value);
[[nodiscard]] bool is_number(const Value& value);  // bool, int or float
[[nodiscard]] double as_double(const Value& value);
// Python's ==: 1 == True == 1.0; lists and tuples differ; mappings without regard to order.
[[nodiscard]] bool equal(Heap& heap, const Value& a, const Value& b, int depth = 0);
// Negative, 0, positive. Throws Failure for what Python does not order.
[[nodiscard]] int compare(Heap& heap, const Value& a, const Value& b, int depth = 0);
// Throws Failure unless it is defined: "'x' is undefined".
void require_defined(const Value& value);

}  // namespace pesc::jinja
