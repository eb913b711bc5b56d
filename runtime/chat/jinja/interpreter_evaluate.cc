// The interpreter's expressions.
#include <algorithm>
#include <utility>

#include "ops/core/check.h"
#include "runtime/chat/jinja/functions.h"
#include "runtime/chat/jinja/interpreter.h"
#include "runtime/chat/jinja/printing.h"
#include "runtime/chat/jinja/tests.h"
#include "runtime/chat/jinja/unicode.h"

namespace pesc::jinja {
namespace {

std::string_view describe(const Value& value) {
  return value.is(Type::kDict) ? "mapping" : type_name(value);
}

// An element by its number, counted from the end where it is negative; a missing value where there is none.
Value element(Heap& heap, const Value& object, int64_t index) {
  if (object.is(Type::kString)) {
    const std::string& text = object.bytes();
    heap.scan(text.size());
    const auto size = static_cast<int64_t>(count_characters(text));
    if (index < 0) index += size;
    if (index < 0 || index >= size) return {};
    const size_t begin = offset_of(text, static_cast<size_t>(index));
    Text one;
    one.append(object.string->text, begin, begin + character_at(text, begin).size);
    return heap.string(std::move(one));
  }
  const auto size = static_cast<int64_t>(object.list->items.size());
  if (index < 0) index += size;
  return index < 0 || index >= size ? Value() : object.list->items[static_cast<size_t>(index)];
}

// Filters that write or give all fields of a mapping.
bool writes_whole(std::string_view filter) {
  return filter == "tojson" || filter == "string" || filter == "items" || filter == "dictsort" ||
         filter == "pprint";
}

}  // namespace

Value Interpreter::attribute(const Value& object, std::string_view name) {
  require_defined(object);
  if (changes_object(object, name)) return {};  // as the sandbox has it: not there
  if (has_method(object, name)) {
    auto* method = heap_.make<Method>();
    method->self = object;
    method->name = name;
    return Value(static_cast<const Method*>(method));
  }
  const Value* found = nullptr;
  if (object.is(Type::kDict)) found = object.dict->find(name);
  if (object.is(Type::kNamespace)) found = object.ns->find(name);
  if (found != nullptr && object.is(Type::kDict)) note_read(*object.dict, *found);
  if (found != nullptr) return *found;
  if (object.is(Type::kLoop)) return loop_attribute(*object.loop, name);
  return {};
}

Value Interpreter::loop_attribute(const LoopState& loop, std::string_view name) const {
  const auto index = static_cast<int64_t>(loop.index);
  if (name == "index") return Value(index + 1);
  if (name == "index0") return Value(index);
  if (name == "first") return Value(index == 0);
  if (name == "depth") return Value(int64_t{1});
  if (name == "depth0") return Value(int64_t{0});
  if (loop.items == nullptr) fail("a 'loop' is used after its loop has ended");
  const std::vector<Value>& items = *loop.items;
  const auto size = static_cast<int64_t>(items.size());
  if (name == "last") return Value(index + 1 == size);
  if (name == "length") return Value(size);
  if (name == "revindex") return Value(size - index);
  if (name == "revindex0") return Value(size - index - 1);
  if (name == "previtem") return index > 0 ? items[loop.index - 1] : Value();
  if (name == "nextitem") return index + 1 < size ? items[loop.index + 1] : Value();
  if (name == "cycle" || name == "changed") fail(str_cat("loop.", name, " is not supported"));
  return {};
}

Value Interpreter::item(const Value& object, const Value& key) {
  require_defined(object);
  if (object.is(Type::kDict)) {
    if (const Value* found = object.dict->find(key); found != nullptr) {
      note_read(*object.dict, *found);
      return *found;
    }
    if (!key.is(Type::kString)) return {};
    return has_method(object, key.bytes()) ? attribute(object, key.bytes()) : Value::missing(&key.bytes());
  }
  const bool indexed =
      object.is(Type::kString) || (object.is(Type::kList) && object.list->kind != ListKind::kGenerator &&
                                   object.list->kind != ListKind::kView);
  if (indexed && (key.is(Type::kInt) || key.is(Type::kBool)))
    return element(heap_, object, key.is(Type::kInt) ? key.integer : static_cast<int64_t>(key.boolean));
  return key.is(Type::kString) ? attribute(object, key.bytes()) : Value();
}

Value Interpreter::evaluate(const Expression& e) {
  if (e.op == Op::kConst) return e.constant;
  if (e.op == Op::kName) {
    heap_.step();
    return lookup(e.slot);
  }
  const Depth depth(*this);
  heap_.step();
  line_ = e.line;
  switch (e.op) {
    case Op::kList:
    case Op::kTuple: {
      std::vector<Value> items;
      for (const ExpressionPtr& arg : e.args) items.push_back(evaluate(*arg));
      return heap_.list(std::move(items), e.op == Op::kList ? ListKind::kList : ListKind::kTuple);
    }
    case Op::kDict:
      return make_dict(e);
    case Op::kAttribute: {
      const Value object = evaluate(*e.args[0]);
      line_ = e.line;
      const Value value = attribute(object, e.name);
      return value.undefined() && value.hint == nullptr ? Value::missing(&e.name) : value;
    }
    case Op::kItem: {
      const Value object = evaluate(*e.args[0]);
      return item(object, evaluate(*e.args[1]));
    }
    case Op::kSlice: {
      const Value object = evaluate(*e.args[0]);
      const auto bound = [&](size_t i) {
        return e.args[i] == nullptr ? Value::none() : evaluate(*e.args[i]);
      };
      const Value start = bound(1);
      const Value stop = bound(2);
      return slice_of(heap_, object, start, stop, bound(3));
    }
    case Op::kCall:
      return call_expression(e);
    case Op::kFilter:
      return evaluate_filter(e, evaluate(*e.args[0]));
    case Op::kTest: {
      const Value input = evaluate(*e.args[0]);
      if (e.test == nullptr) fail(str_cat("there is no test '", e.name, "'"), e.line);
      Arguments arguments = evaluate_arguments(e);
      const bool holds = e.test->holds(*this, input, arguments);
      arguments.end();
      return Value(holds);
    }
    case Op::kNot:
      return Value(!truthy(evaluate(*e.args[0])));
    case Op::kAnd: {
      const Value left = evaluate(*e.args[0]);
      return truthy(left) ? evaluate(*e.args[1]) : left;
    }
    case Op::kOr: {
      const Value left = evaluate(*e.args[0]);
      return truthy(left) ? left : evaluate(*e.args[1]);
    }
    case Op::kNegative: {
      const Value value = evaluate(*e.args[0]);
      if (value.is(Type::kFloat)) return Value(-value.number);
      return arithmetic(heap_, Op::kSubtract, Value(int64_t{0}), value);
    }
    case Op::kPositive:
      return arithmetic(heap_, Op::kAdd, Value(int64_t{0}), evaluate(*e.args[0]));
    case Op::kAdd:
    case Op::kSubtract:
    case Op::kMultiply:
    case Op::kDivide:
    case Op::kFloorDivide:
    case Op::kModulo:
    case Op::kPower: {
      const Value left = evaluate(*e.args[0]);
      const Value right = evaluate(*e.args[1]);
      line_ = e.line;
      return arithmetic(heap_, e.op, left, right);
    }
    case Op::kConcat:
      return concatenation(e);
    case Op::kCompare:
      return Value(compare_all(e));
    case Op::kCondition: {
      if (truthy(evaluate(*e.args[0]))) return evaluate(*e.args[1]);
      return e.args[2] == nullptr ? Value() : evaluate(*e.args[2]);
    }
    default:
      break;
  }
  return {};
}

Value Interpreter::evaluate_filter(const Expression& e, const Value& input) {
  line_ = e.line;
  if (e.filter == nullptr) fail(str_cat("there is no filter '", e.name, "'"));
  Arguments arguments = evaluate_arguments(e);
  line_ = e.line;
  if (writes_whole(e.name)) note_whole(input);
  const Value value = e.filter->apply(*this, input, arguments);
  arguments.end();
  return value;
}

Value Interpreter::make_dict(const Expression& e) {
  auto* dict = heap_.make<Dict>();
  for (size_t i = 0; i < e.args.size(); i += 2) {
    const Value key = evaluate(*e.args[i]);
    heap_.charge(2 * sizeof(Value));
    heap_.step(static_cast<int64_t>(dict->items.size() / 16));
    dict->set(key, evaluate(*e.args[i + 1]));
  }
  return Value(static_cast<const Dict*>(dict));
}

Value Interpreter::concatenation(const Expression& e) {
  Text text;
  for (const ExpressionPtr& arg : e.args) {
    const Value value = evaluate(*arg);
    if (value.is(Type::kString)) {
      text.append(value.string->text);
    } else {
      text.append(to_text(heap_, value));
    }
    heap_.charge(text.bytes.size());
    heap_.scan(text.bytes.size());
  }
  return heap_.string(std::move(text));
}

bool Interpreter::compare_all(const Expression& e) {
  Value left = evaluate(*e.args[0]);
  for (size_t i = 0; i < e.comparisons.size(); ++i) {
    const Value right = evaluate(*e.args[i + 1]);
    line_ = e.line;
    if (!compare_one(e.comparisons[i], left, right)) return false;
    left = right;
  }
  return true;
}

bool Interpreter::compare_one(Comparison op, const Value& a, const Value& b) {
  switch (op) {
    case Comparison::kEqual:
      return equal(heap_, a, b);
    case Comparison::kUnequal:
      return !equal(heap_, a, b);
    case Comparison::kLess:
      return compare(heap_, a, b) < 0;
    case Comparison::kLessEqual:
      return compare(heap_, a, b) <= 0;
    case Comparison::kGreater:
      return compare(heap_, a, b) > 0;
    case Comparison::kGreaterEqual:
      return compare(heap_, a, b) >= 0;
    case Comparison::kIn:
      return contains(heap_, b, a);
    case Comparison::kNotIn:
      return !contains(heap_, b, a);
  }
  return false;
}

Arguments Interpreter::evaluate_arguments(const Expression& e) {
  Arguments arguments;
  for (size_t i = 1; i < e.args.size(); ++i) arguments.positional.push_back(evaluate(*e.args[i]));
  for (const auto& [name, value] : e.keywords) arguments.named.emplace_back(name, evaluate(*value));
  return arguments;
}

Value Interpreter::call_expression(const Expression& e) {
  const Expression& callee = *e.args[0];
  if (callee.op == Op::kAttribute) {  // a method, without making a value of it first
    const Value object = evaluate(*callee.args[0]);
    require_defined(object);
    if (has_method(object, callee.name)) {
      Arguments arguments = evaluate_arguments(e);
      line_ = e.line;
      return call_method(*this, object, callee.name, arguments);
    }
    const Value function = attribute(object, callee.name);
    if (function.undefined()) fail(str_cat("a ", describe(object), " has no method '", callee.name, "'"));
    Arguments arguments = evaluate_arguments(e);
    return call(function, arguments);
  }
  const Value function = evaluate(callee);
  Arguments arguments = evaluate_arguments(e);
  line_ = e.line;
  return call(function, arguments);
}

Value Interpreter::apply_filter(std::string_view name, const Value& input, Arguments& arguments) {
  const FilterEntry* filter = find_filter(name, line_);
  if (filter == nullptr) fail(str_cat("there is no filter '", name, "'"));
  if (writes_whole(name)) note_whole(input);
  const Value value = filter->apply(*this, input, arguments);
  arguments.end();
  return value;
}

bool Interpreter::apply_test(std::string_view name, const Value& input, Arguments& arguments) {
  const TestEntry* test = find_test(name, line_);
  if (test == nullptr) fail(str_cat("there is no test '", name, "'"));
  const bool holds = test->holds(*this, input, arguments);
  arguments.end();
  return holds;
}

}  // namespace pesc::jinja
