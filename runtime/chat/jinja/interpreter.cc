#include "runtime/chat/jinja/interpreter.h"

#include <algorithm>
#include <utility>

#include "ops/core/check.h"
#include "runtime/chat/jinja/functions.h"
#include "runtime/chat/jinja/printing.h"

namespace pesc::jinja {
namespace {

constexpr size_t kLastBit = 63;

// What the output is written into, and the scope, until the end of a block.
template <class T>
class Exchanged {
 public:
  Exchanged(T& place, T value) : place_(place), before_(std::exchange(place, value)) {}
  ~Exchanged() { place_ = before_; }
  Exchanged(const Exchanged&) = delete;
  Exchanged& operator=(const Exchanged&) = delete;

 private:
  T& place_;
  T before_;
};

}  // namespace

Interpreter::Depth::Depth(Interpreter& of) : depth(of.depth_) {
  if (++depth > of.limits_.depth) {
    --depth;
    throw Failure(
        str_cat("rendering is nested more than ", of.limits_.depth, " deep (a macro that calls itself?)"));
  }
}

Interpreter::Interpreter(const Program& program, Heap& heap, const RenderLimits& limits,
                         std::string_view date)
    : program_(program),
      heap_(heap),
      limits_(limits),
      date_(date),
      root_(program.names.size()),
      root_set_(program.names.size()),
      root_read_(program.names.size()) {
  for (const Function& function : global_functions()) set(function.name, Value(&function));
}

void Interpreter::set(std::string_view name, const Value& value) {
  const int slot = program_.find_slot(name);
  if (slot < 0) return;
  root_[static_cast<size_t>(slot)] = value;
  root_set_[static_cast<size_t>(slot)] = true;
}

void Interpreter::run() {
  try {
    execute(program_.body);
    switch_message(-1);
  } catch (const Failure& failure) {
    if (failure.line > 0) throw;
    throw Failure(failure.what(), line_);
  }
}

Interpreter::Flow Interpreter::execute(const Body& body) {
  for (const auto& statement : body) {
    if (const Flow flow = execute(*statement); flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::execute(const Statement& s) {
  const Depth depth(*this);
  heap_.step();
  line_ = s.line;
  switch (s.act) {
    case Act::kOutput:
      for (const ExpressionPtr& what : s.expressions) write(evaluate(*what));
      return Flow::kNext;
    case Act::kIf:
      for (size_t i = 0; i < s.bodies.size(); ++i) {
        if (i == s.expressions.size() || truthy(evaluate(*s.expressions[i]))) return execute(s.bodies[i]);
      }
      return Flow::kNext;
    case Act::kFor:
      return loop(s);
    case Act::kSet: {
      const Value value = evaluate(*s.expressions[0]);
      assign(s.target, value);
      if (may_take_message_ && value.is(Type::kDict) && value.dict->message >= 0) {
        may_take_message_ = false;
        switch_message(value.dict->message);
      }
      return Flow::kNext;
    }
    case Act::kSetBlock:
      assign(s.target, filtered(s, captured(s.bodies[0])));
      return Flow::kNext;
    case Act::kMacro: {
      auto* macro = heap_.make<Macro>();
      macro->statement = &s;
      macro->outer = scope_;
      for (Scope* scope = scope_; scope != nullptr; scope = scope->outer) scope->held = true;
      define(s.target.slot, Value(static_cast<const Macro*>(macro)));
      return Flow::kNext;
    }
    case Act::kCallBlock:
      call_block(s);
      return Flow::kNext;
    case Act::kFilterBlock:
      write(filtered(s, captured(s.bodies[0])));
      return Flow::kNext;
    case Act::kGeneration: {
      const size_t begin = out_->bytes.size();
      const Exchanged<Scope*> scope(scope_, inner_scope(scope_));
      execute(s.bodies[0]);
      out_->mark(begin);
      return Flow::kNext;
    }
    case Act::kBreak:
      return Flow::kBreak;
    case Act::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNext;
}

Scope* Interpreter::inner_scope(Scope* outer) {
  Scope* scope = heap_.make<Scope>();
  scope->outer = outer;
  return scope;
}

Interpreter::Flow Interpreter::loop(const Statement& s) {
  const Value over = evaluate(*s.expressions[0]);
  std::vector<Value> items = elements(heap_, over);
  heap_.step(static_cast<int64_t>(items.size()));
  const Exchanged<Scope*> outer(scope_, scope_);
  Scope* const around = scope_;
  if (s.expressions.size() > 1) {
    std::vector<Value> kept;
    for (const Value& item : items) {
      scope_ = inner_scope(around);
      assign(s.target, item);
      if (truthy(evaluate(*s.expressions[1]))) kept.push_back(item);
    }
    items = std::move(kept);
  }
  auto* state = heap_.make<LoopState>();
  state->items = &items;
  const int loop_slot = program_.find_slot("loop");
  const int64_t message = message_;
  const Exchanged<bool> may_take(may_take_message_, false);
  Scope* scope = inner_scope(around);
  for (; state->index < items.size(); ++state->index) {
    const Value& item = items[state->index];
    if (scope->held) scope = inner_scope(around);
    scope->variables.clear();
    scope_ = scope;
    assign(s.target, item);
    if (loop_slot >= 0) define(loop_slot, Value(static_cast<const LoopState*>(state)));
    if (item.is(Type::kDict) && item.dict->message >= 0) switch_message(item.dict->message);
    may_take_message_ = item.is(Type::kInt);
    const Flow flow = execute(s.bodies[0]);
    switch_message(message);
    if (flow == Flow::kBreak) break;
  }
  state->items = nullptr;
  return Flow::kNext;
}

// Ends the stretch of the rendered text that belongs to the present message.
void Interpreter::switch_message(int64_t message) {
  const size_t end = root_text_.bytes.size();
  if (end > message_begin_) {
    if (!stretches_.empty() && stretches_.back().message == message_) {
      stretches_.back().end = end;
    } else {
      stretches_.push_back({message_begin_, end, message_});
    }
  }
  message_begin_ = end;
  message_ = message;
}

void Interpreter::write(const Value& value) {
  note_whole(value);
  const auto append = [&](const Text& text) {
    heap_.charge(text.bytes.size());
    heap_.scan(text.bytes.size());
    if (static_cast<int64_t>(out_->bytes.size() + text.bytes.size()) > limits_.output_bytes) {
      throw Failure(str_cat("the rendered text has more than ", limits_.output_bytes >> 20, " MiB"));
    }
    out_->append(text);
  };
  if (value.is(Type::kString)) {
    append(value.string->text);
  } else if (!value.undefined()) {
    append(to_text(heap_, value));
  }
}

void Interpreter::assign(const Target& target, const Value& value) {
  if (!target.parts.empty()) {
    const std::vector<Value> values = elements(heap_, value);
    if (values.size() != target.parts.size()) {
      fail(str_cat(values.size(), " values cannot be assigned to ", target.parts.size(), " names"));
    }
    for (size_t i = 0; i < values.size(); ++i) assign(target.parts[i], values[i]);
  } else if (target.attribute.empty()) {
    define(target.slot, value);
  } else {
    const Value space = lookup(target.slot);
    if (!space.is(Type::kNamespace)) {
      fail(str_cat("'", program_.names[static_cast<size_t>(target.slot)], "' is no namespace, so '",
                   target.attribute, "' of it cannot be set"));
    }
    if (target.attribute.starts_with('_'))
      fail(str_cat("'", target.attribute, "' begins with an underscore, which a namespace does not allow"));
    heap_.charge(sizeof(Value));
    heap_.step(static_cast<int64_t>(space.ns->items.size() / 16));
    space.ns->set(target.attribute, value);
  }
}

void Interpreter::define(int slot, const Value& value) {
  if (scope_ == nullptr) {
    root_[static_cast<size_t>(slot)] = value;
    root_set_[static_cast<size_t>(slot)] = true;
    return;
  }
  heap_.step(static_cast<int64_t>(scope_->variables.size() / 16));
  for (auto& [known, held] : scope_->variables) {
    if (known == slot) {
      held = value;
      return;
    }
  }
  heap_.charge(sizeof(Value));
  scope_->variables.emplace_back(slot, value);
}

Value Interpreter::lookup(int slot) {
  for (const Scope* scope = scope_; scope != nullptr; scope = scope->outer) {
    heap_.step(static_cast<int64_t>(scope->variables.size() / 16));
    for (const auto& [known, held] : scope->variables) {
      if (known == slot) return held;
    }
  }
  root_read_[static_cast<size_t>(slot)] = true;
  if (root_set_[static_cast<size_t>(slot)]) return root_[static_cast<size_t>(slot)];
  return Value::missing(&program_.names[static_cast<size_t>(slot)]);
}

bool Interpreter::has_read(std::string_view variable) const {
  const int slot = program_.find_slot(variable);
  return slot >= 0 && root_read_[static_cast<size_t>(slot)];
}

bool Interpreter::has_read(const Dict& message, size_t place) const {
  const auto number = static_cast<size_t>(message.message);
  return number < fields_read_.size() && ((fields_read_[number] >> std::min(place, kLastBit)) & 1) != 0;
}

void Interpreter::note_read(const Dict& dict, const Value& found) {
  if (dict.message < 0) return;
  const auto number = static_cast<size_t>(dict.message);
  if (number >= fields_read_.size()) fields_read_.resize(number + 1);
  size_t place = 0;
  while (&dict.items[place].second != &found) ++place;
  fields_read_[number] |= uint64_t{1} << std::min(place, kLastBit);
}

void Interpreter::note_whole(const Value& value) {
  if (value.is(Type::kList)) {
    for (const Value& item : value.list->items) {
      if (item.is(Type::kDict)) note_whole(item);
    }
  }
  if (!value.is(Type::kDict)) return;
  for (const auto& [key, held] : value.dict->items) note_read(*value.dict, held);
}

Text Interpreter::captured(const Body& body) {
  Text text;
  const Exchanged<Text*> out(out_, &text);
  const Exchanged<Scope*> scope(scope_, inner_scope(scope_));
  execute(body);
  return text;
}

// Through the filters of a set or filter block, whose innermost input is the text.
Value Interpreter::filtered(const Statement& s, Text text) {
  Value value = heap_.string(std::move(text));
  if (s.expressions.empty()) return value;
  std::vector<const Expression*> chain;
  for (const Expression* e = s.expressions[0].get(); e != nullptr; e = e->args[0].get()) chain.push_back(e);
  for (auto filter = chain.rbegin(); filter != chain.rend(); ++filter)
    value = evaluate_filter(**filter, value);
  return value;
}

void Interpreter::call_block(const Statement& s) {
  auto* caller = heap_.make<Macro>();
  caller->statement = &s;
  caller->outer = scope_;
  for (Scope* scope = scope_; scope != nullptr; scope = scope->outer) scope->held = true;
  const Expression& e = *s.expressions[0];
  const Value callee = evaluate(*e.args[0]);
  Arguments arguments = evaluate_arguments(e);
  arguments.named.emplace_back("caller", Value(static_cast<const Macro*>(caller)));
  write(call(callee, arguments));
}

Value Interpreter::call_macro(const Macro& macro, Arguments& arguments) {
  const Depth depth(*this);
  const Signature& signature = macro.statement->signature;
  const std::string& name = signature.name.empty() ? "caller" : signature.name;
  if (arguments.positional.size() > signature.slots.size())
    fail(str_cat("macro '", name, "' takes at most ", signature.slots.size(), " arguments"));
  const int line = line_;
  Scope* scope = inner_scope(macro.outer);
  Text text;
  {
    const Exchanged<Scope*> inner(scope_, scope);
    const Exchanged<Text*> out(out_, &text);
    const Exchanged<bool> may_take(may_take_message_, false);
    const size_t without_default = signature.slots.size() - signature.defaults.size();
    for (size_t i = 0; i < signature.slots.size(); ++i) {
      const auto named =
          std::ranges::find(arguments.named, signature.names[i], &std::pair<std::string, Value>::first);
      if (i < arguments.positional.size()) {
        define(signature.slots[i], arguments.positional[i]);
      } else if (named != arguments.named.end()) {
        define(signature.slots[i], named->second);
        arguments.named.erase(named);
      } else if (i >= without_default) {
        define(signature.slots[i], evaluate(*signature.defaults[i - without_default]));
      } else {
        define(signature.slots[i], Value::missing(&signature.names[i]));
      }
    }
    for (const auto& [given, value] : arguments.named) {
      if (given != "caller") fail(str_cat("macro '", name, "' has no parameter '", given, "'"));
      if (const int slot = program_.find_slot("caller"); slot >= 0) define(slot, value);
    }
    execute(macro.statement->bodies[0]);
  }
  line_ = line;
  return heap_.string(std::move(text));
}

Value Interpreter::call(const Value& callee, Arguments& arguments) {
  switch (callee.type) {
    case Type::kMacro:
      return call_macro(*callee.macro, arguments);
    case Type::kFunction:
      return callee.function->call(*this, arguments);
    case Type::kMethod:
      return call_method(*this, callee.method->self, callee.method->name, arguments);
    case Type::kUndefined:
      require_defined(callee);
      break;
    default:
      break;
  }
  fail(str_cat("a ", type_name(callee), " cannot be called"));
}

}  // namespace pesc::jinja
