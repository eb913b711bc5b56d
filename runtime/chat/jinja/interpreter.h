// Executes a compiled template. One object renders once.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/chat/jinja/ast.h"
#include "runtime/chat/jinja/filters.h"
#include "runtime/chat/jinja/value.h"

namespace pesc::jinja {

// The variables of a loop's iteration, a macro's call, or the template.
struct Scope : Object {
  Scope* outer = nullptr;
  std::vector<std::pair<int, Value>> variables;  // by slot
  bool held = false;                             // a macro was made in it, which may still look into it
};

struct Macro : Object {
  const Statement* statement = nullptr;
  Scope* outer = nullptr;
};

struct Function : Object {
  std::string_view name;
  Value (*call)(Interpreter&, Arguments&) = nullptr;
};

// A stretch of the rendered text, and the message over which the template went while writing it.
struct Stretch {
  size_t begin = 0;
  size_t end = 0;
  int64_t message = -1;
};

struct RenderLimits {
  int depth = 400;
  int64_t output_bytes = int64_t{64} << 20;
};

class Interpreter {
 public:
  Interpreter(const Program& program, Heap& heap, const RenderLimits& limits, std::string_view date);

  // A variable of the template. One that the template never names is dropped.
  void set(std::string_view name, const Value& value);
  // Throws Failure, with the line.
  void run();
  [[nodiscard]] Text& text() { return root_text_; }
  [[nodiscard]] const std::vector<Stretch>& stretches() const { return stretches_; }

  // Whether the template, as far as it ran, has read a variable, and the field of a message at a place of its
  // mapping. A test whether a message has a field reads nothing.
  [[nodiscard]] bool has_read(std::string_view variable) const;
  [[nodiscard]] bool has_read(const Dict& message, size_t place) const;

  // For filters, tests, methods and functions.
  void note_read(const Dict& dict, const Value& found);
  void note_whole(const Value& value);  // its messages are written, or gone through, whatever is in them
  [[nodiscard]] Heap& heap() { return heap_; }
  [[nodiscard]] std::string_view date() const { return date_; }  // "YYYY-MM-DD", or empty
  Value attribute(const Value& object, std::string_view name);   // object.name
  Value item(const Value& object, const Value& key);             // object[key]
  Value call(const Value& callee, Arguments& arguments);
  Value apply_filter(std::string_view name, const Value& input, Arguments& arguments);
  bool apply_test(std::string_view name, const Value& input, Arguments& arguments);

 private:
  enum class Flow : uint8_t { kNext, kBreak, kContinue };
  struct Depth {
    explicit Depth(Interpreter& of);
    ~Depth() { --depth; }
    Depth(const Depth&) = delete;
    Depth& operator=(const Depth&) = delete;
    int& depth;
  };

  // interpreter.cc: statements
  Flow execute(const Body& body);
  Flow execute(const Statement& statement);
  Flow loop(const Statement& statement);
  void write(const Value& value);
  void assign(const Target& target, const Value& value);
  void call_block(const Statement& statement);
  void switch_message(int64_t message);
  Scope* inner_scope(Scope* outer);
  Text captured(const Body& body);
  Value filtered(const Statement& statement, Text text);
  Value call_macro(const Macro& macro, Arguments& arguments);
  void define(int slot, const Value& value);
  Value lookup(int slot);

  // interpreter_evaluate.cc: expressions
  Value evaluate(const Expression& e);
  Value evaluate_filter(const Expression& e, const Value& input);
  Value loop_attribute(const LoopState& loop, std::string_view name) const;
  Value make_dict(const Expression& e);
  Value concatenation(const Expression& e);
  bool compare_all(const Expression& e);
  bool compare_one(Comparison op, const Value& a, const Value& b);
  Value call_expression(const Expression& e);
  Arguments evaluate_arguments(const Expression& e);

  const Program& program_;
  Heap& heap_;
  RenderLimits limits_;
  std::string_view date_;
  std::vector<Value> root_;  // by slot
  std::vector<bool> root_set_;
  Scope* scope_ = nullptr;  // null: the template's own
  Text root_text_;
  Text* out_ = &root_text_;
  std::vector<Stretch> stretches_;
  int64_t message_ = -1;           // over which the template goes just now
  size_t message_begin_ = 0;       // where its text begins
  bool may_take_message_ = false;  // inside a loop's iteration over something else than messages
  int depth_ = 0;
  int line_ = 0;
  std::vector<bool> root_read_;        // by slot
  std::vector<uint64_t> fields_read_;  // of each message: bit i for place i, the last for all others
};

// The values by their place in `list`; of a mapping its keys, of a string its characters. Throws Failure for
// what cannot be gone through. An undefined value has none.
[[nodiscard]] std::vector<Value> elements(Heap& heap, const Value& value);
// Python's len(); -1 for what has none.
[[nodiscard]] int64_t length(const Value& value);
[[nodiscard]] bool contains(Heap& heap, const Value& container, const Value& value);
// a + b, a - b and so on.
[[nodiscard]] Value arithmetic(Heap& heap, Op op, const Value& a, const Value& b);
// value[start:stop:step]; each of the three may be none.
[[nodiscard]] Value slice_of(Heap& heap, const Value& value, const Value& start, const Value& stop,
                             const Value& step);

}  // namespace pesc::jinja
