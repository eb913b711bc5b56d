// Arithmetic, membership, slices and iteration, as Python does them.
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "ops/core/check.h"
#include "runtime/chat/jinja/interpreter.h"
#include "runtime/chat/jinja/text_operations.h"
#include "runtime/chat/jinja/unicode.h"

namespace pesc::jinja {
namespace {

std::string_view sign_of(Op op) {
  switch (op) {
    case Op::kAdd:
      return "+";
    case Op::kSubtract:
      return "-";
    case Op::kMultiply:
      return "*";
    case Op::kDivide:
      return "/";
    case Op::kFloorDivide:
      return "//";
    case Op::kModulo:
      return "%";
    default:
      return "**";
  }
}

[[noreturn]] void too_large() {
  fail("a whole number does not fit 64 bits");
}

int64_t whole(const Value& value) {
  return value.is(Type::kBool) ? static_cast<int64_t>(value.boolean) : value.integer;
}

int64_t power(int64_t base, int64_t exponent) {
  int64_t result = 1;
  for (; exponent > 0; exponent /= 2) {
    if (exponent % 2 == 1 && __builtin_mul_overflow(result, base, &result)) too_large();
    if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) too_large();
  }
  return result;
}

Value of_integers(Op op, int64_t a, int64_t b) {
  int64_t result = 0;
  switch (op) {
    case Op::kAdd:
      if (__builtin_add_overflow(a, b, &result)) too_large();
      return Value(result);
    case Op::kSubtract:
      if (__builtin_sub_overflow(a, b, &result)) too_large();
      return Value(result);
    case Op::kMultiply:
      if (__builtin_mul_overflow(a, b, &result)) too_large();
      return Value(result);
    case Op::kPower:
      return b >= 0 ? Value(power(a, b)) : Value(std::pow(static_cast<double>(a), static_cast<double>(b)));
    default:
      break;
  }
  if (b == 0) fail("a number is divided by zero");
  if (op == Op::kDivide) return Value(static_cast<double>(a) / static_cast<double>(b));
  if (a == std::numeric_limits<int64_t>::min() && b == -1) too_large();
  const int64_t rest = a % b;
  const bool below = rest != 0 && (rest < 0) != (b < 0);
  return Value(op == Op::kModulo ? rest + (below ? b : 0) : a / b - (below ? 1 : 0));
}

Value of_doubles(Op op, double a, double b) {
  switch (op) {
    case Op::kAdd:
      return Value(a + b);
    case Op::kSubtract:
      return Value(a - b);
    case Op::kMultiply:
      return Value(a * b);
    case Op::kPower:
      return Value(std::pow(a, b));
    default:
      break;
  }
  if (b == 0) fail("a number is divided by zero");
  if (op == Op::kDivide) return Value(a / b);
  double rest = std::fmod(a, b);
  if (rest != 0 && (rest < 0) != (b < 0)) rest += b;
  return Value(op == Op::kModulo ? rest : std::floor((a - rest) / b + 0.5));
}

Value repeated(Heap& heap, const Value& value, int64_t times) {
  const auto n = static_cast<size_t>(std::max<int64_t>(times, 0));
  const size_t size =
      value.is(Type::kString) ? value.bytes().size() : value.list->items.size() * sizeof(Value);
  size_t total = 0;
  if (__builtin_mul_overflow(size, n, &total)) total = std::numeric_limits<size_t>::max() / 4;
  heap.charge(total);
  heap.scan(total);
  if (total == 0) return value.is(Type::kString) ? heap.string(Text()) : heap.list({}, value.list->kind);
  if (value.is(Type::kString)) {
    Text text;
    for (size_t i = 0; i < n; ++i) text.append(value.string->text);
    return heap.string(std::move(text));
  }
  std::vector<Value> items;
  for (size_t i = 0; i < n; ++i)
    items.insert(items.end(), value.list->items.begin(), value.list->items.end());
  return heap.list(std::move(items), value.list->kind);
}

bool is_sequence(const Value& value) {
  return value.is(Type::kString) || (value.is(Type::kList) && (value.list->kind == ListKind::kList ||
                                                               value.list->kind == ListKind::kTuple));
}

// start, stop and step of a slice as Python makes them fit a sequence of `size` elements.
struct Slice {
  int64_t start;
  int64_t stop;
  int64_t step;
};
Slice fitted(const Value& start, const Value& stop, const Value& step, int64_t size) {
  const auto number = [](const Value& value) -> std::optional<int64_t> {
    if (value.is_none()) return std::nullopt;
    require_defined(value);
    if (!value.is(Type::kInt) && !value.is(Type::kBool))
      fail(str_cat("a ", type_name(value), " is no index of a slice"));
    return whole(value);
  };
  Slice out{0, 0, number(step).value_or(1)};
  if (out.step == 0) fail("the step of a slice is 0");
  const bool forward = out.step > 0;
  const auto fit = [&](const std::optional<int64_t>& given, int64_t otherwise) {
    if (!given.has_value()) return otherwise;
    int64_t at = *given;
    if (at < 0) at = at < -size ? -1 : at + size;
    if (*given < -size) return forward ? int64_t{0} : int64_t{-1};
    return std::min(at, forward ? size : size - 1);
  };
  out.start = fit(number(start), forward ? 0 : size - 1);
  out.stop = fit(number(stop), forward ? size : -1);
  return out;
}

template <class Take>
void for_each_in(const Slice& s, const Take& take) {
  if (s.step > 0) {
    for (int64_t i = s.start; i<s.stop; i = s.step> s.stop - i ? s.stop : i + s.step) take(i);
  } else {
    for (int64_t i = s.start; i > s.stop; i = s.step < s.stop - i ? s.stop : i + s.step) take(i);
  }
}

}  // namespace

Value arithmetic(Heap& heap, Op op, const Value& a, const Value& b) {
  require_defined(a);
  require_defined(b);
  if (is_number(a) && is_number(b)) {
    if (a.is(Type::kFloat) || b.is(Type::kFloat)) return of_doubles(op, as_double(a), as_double(b));
    return of_integers(op, whole(a), whole(b));
  }
  if (op == Op::kAdd && a.is(Type::kString) && b.is(Type::kString)) {
    const bool safe = a.string->safe || b.string->safe;
    Text text = safe && !a.string->safe ? escaped(heap, a.string->text) : a.string->text;
    text.append(safe && !b.string->safe ? escaped(heap, b.string->text) : b.string->text);
    heap.scan(text.bytes.size());
    return heap.string(std::move(text), safe);
  }
  if (op == Op::kAdd && a.is(Type::kList) && b.is(Type::kList) && is_sequence(a) &&
      a.list->kind == b.list->kind) {
    std::vector<Value> items = a.list->items;
    items.insert(items.end(), b.list->items.begin(), b.list->items.end());
    heap.step(static_cast<int64_t>(items.size() / 8));
    return heap.list(std::move(items), a.list->kind);
  }
  if (op == Op::kMultiply && is_sequence(a) && (b.is(Type::kInt) || b.is(Type::kBool)))
    return repeated(heap, a, whole(b));
  if (op == Op::kMultiply && is_sequence(b) && (a.is(Type::kInt) || a.is(Type::kBool)))
    return repeated(heap, b, whole(a));
  if (op == Op::kModulo && a.is(Type::kString)) fail("formatting a string by % is not supported");
  fail(str_cat("'", sign_of(op), "' is not there for a ", type_name(a), " and a ", type_name(b)));
}

bool contains(Heap& heap, const Value& container, const Value& value) {
  switch (container.type) {
    case Type::kUndefined:
      return false;
    case Type::kString:
      if (!value.is(Type::kString)) fail(str_cat("a ", type_name(value), " is looked for in a string"));
      heap.scan(container.bytes().size());
      return find_text(container.bytes(), value.bytes(), 0) != std::string_view::npos;
    case Type::kDict:
      return container.dict->find(value) != nullptr;
    case Type::kList:
      for (const Value& item : container.list->items) {
        if (equal(heap, item, value)) return true;
      }
      return false;
    default:
      fail(str_cat("nothing can be looked for in a ", type_name(container)));
  }
}

std::vector<Value> elements(Heap& heap, const Value& value) {
  std::vector<Value> out;
  switch (value.type) {
    case Type::kUndefined:
      return out;
    case Type::kList:
      heap.charge(value.list->items.size() * sizeof(Value));
      return value.list->items;
    case Type::kDict:
      for (const auto& [key, item] : value.dict->items) out.push_back(key);
      heap.charge(out.size() * sizeof(Value));
      return out;
    case Type::kString: {
      const Text& text = value.string->text;
      heap.step(static_cast<int64_t>(text.bytes.size()));
      for (size_t at = 0; at < text.bytes.size();) {
        const size_t size = character_at(text.bytes, at).size;
        Text one;
        one.append(text, at, at + size);
        out.push_back(heap.string(std::move(one)));
        at += size;
      }
      return out;
    }
    default:
      fail(str_cat("a ", type_name(value), " cannot be gone through"));
  }
}

int64_t length(const Value& value) {
  switch (value.type) {
    case Type::kUndefined:
      return 0;
    case Type::kString:
      return static_cast<int64_t>(count_characters(value.bytes()));
    case Type::kList:
      return value.list->kind == ListKind::kGenerator ? -1 : static_cast<int64_t>(value.list->items.size());
    case Type::kDict:
      return static_cast<int64_t>(value.dict->items.size());
    default:
      return -1;
  }
}

Value slice_of(Heap& heap, const Value& value, const Value& start, const Value& stop, const Value& step) {
  require_defined(value);
  if (value.is(Type::kString)) {
    const Text& text = value.string->text;
    heap.scan(text.bytes.size());
    const Slice s = fitted(start, stop, step, length(value));
    Text out;
    if (s.step == 1) {
      if (s.start >= s.stop) return heap.string(Text());
      const bool ascii = text.bytes.size() == static_cast<size_t>(length(value));
      const auto begin =
          ascii ? static_cast<size_t>(s.start) : offset_of(text.bytes, static_cast<size_t>(s.start));
      const auto more = static_cast<size_t>(s.stop - s.start);
      const size_t end =
          ascii ? begin + more : begin + offset_of(std::string_view(text.bytes).substr(begin), more);
      out.append(text, begin, end);
      return heap.string(std::move(out));
    }
    heap.charge(text.bytes.size() * sizeof(size_t));
    heap.step(static_cast<int64_t>(text.bytes.size()));
    std::vector<size_t> offsets;
    for (size_t at = 0; at < text.bytes.size(); at += character_at(text.bytes, at).size)
      offsets.push_back(at);
    offsets.push_back(text.bytes.size());
    for_each_in(s, [&](int64_t i) {
      out.append(text, offsets[static_cast<size_t>(i)], offsets[static_cast<size_t>(i) + 1]);
    });
    return heap.string(std::move(out));
  }
  if (!value.is(Type::kList) || value.list->kind == ListKind::kGenerator ||
      value.list->kind == ListKind::kView)
    fail(str_cat("a ", type_name(value), " cannot be sliced"));
  std::vector<Value> items;
  heap.step(length(value) / 8);
  for_each_in(fitted(start, stop, step, length(value)),
              [&](int64_t i) { items.push_back(value.list->items[static_cast<size_t>(i)]); });
  return heap.list(std::move(items), value.list->kind);
}

}  // namespace pesc::jinja
