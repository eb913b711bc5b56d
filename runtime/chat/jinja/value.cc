#include "runtime/chat/jinja/value.h"

#include <algorithm>
#include <compare>

#include "ops/core/check.h"

namespace pesc::jinja {
namespace {

constexpr int kMaxComparedDepth = 200;  // of lists in lists that are compared

void check_compared_depth(int depth) {
  if (depth > kMaxComparedDepth)
    fail(str_cat("values that are nested more than ", kMaxComparedDepth, " deep are compared"));
}

int sign(std::partial_ordering order) {
  return order < 0 ? -1 : order > 0 ? 1 : 0;
}

bool both_integers(const Value& a, const Value& b) {
  return !a.is(Type::kFloat) && !b.is(Type::kFloat);
}

int64_t as_integer(const Value& value) {
  return value.is(Type::kBool) ? static_cast<int64_t>(value.boolean) : value.integer;
}

bool scalar(const Value& value) {
  return is_number(value) || value.is_none() || value.is(Type::kString);
}

bool equal_scalars(const Value& a, const Value& b) {
  if (is_number(a) && is_number(b)) {
    return both_integers(a, b) ? as_integer(a) == as_integer(b) : as_double(a) == as_double(b);
  }
  return a.type == b.type && (a.is_none() || (a.is(Type::kString) && a.bytes() == b.bytes()));
}

}  // namespace

void fail(const std::string& what, int line) {
  throw Failure(what, line);
}

void Text::append(std::string_view text, Origin origin) {
  if (origin != kOwnText && !text.empty()) {
    const size_t begin = bytes.size();
    if (!spans.empty() && spans.back().end == begin && spans.back().origin == origin) {
      spans.back().end += text.size();
    } else {
      spans.push_back({begin, begin + text.size(), origin});
    }
  }
  bytes.append(text);
}

void Text::append(const Text& text, size_t begin, size_t end) {
  const size_t base = bytes.size();
  bytes.append(text.bytes, begin, end - begin);
  auto span = std::ranges::partition_point(text.spans, [&](const Span& s) { return s.end <= begin; });
  for (; span != text.spans.end() && span->begin < end; ++span) {
    const Span moved = {base + std::max(span->begin, begin) - begin, base + std::min(span->end, end) - begin,
                        span->origin};
    if (!spans.empty() && spans.back().end == moved.begin && spans.back().origin == moved.origin) {
      spans.back().end = moved.end;
    } else {
      spans.push_back(moved);
    }
  }
}

void Text::mark(size_t begin) {
  std::vector<Span> marked;
  size_t at = begin;
  for (const Span& span : spans) {
    if (span.end <= begin) {
      marked.push_back(span);
      continue;
    }
    if (span.begin < begin) marked.push_back({span.begin, begin, span.origin});
    const size_t from = std::max(span.begin, begin);
    if (at < from) marked.push_back({at, from, kMarked});
    marked.push_back({from, span.end, span.origin | kMarked});
    at = span.end;
  }
  if (at < bytes.size()) marked.push_back({at, bytes.size(), kMarked});
  spans = std::move(marked);
}

Origin Text::origin_at(size_t offset) const {
  const auto span = std::ranges::partition_point(spans, [&](const Span& s) { return s.end <= offset; });
  return span != spans.end() && span->begin <= offset ? span->origin : kOwnText;
}

size_t Dict::place(const Value& key) const {
  if (key.is(Type::kString) && items.size() > kIndexed) {
    const auto found = index_.find(key.bytes());
    return found == index_.end() ? items.size() : found->second;
  }
  size_t at = 0;
  while (at < items.size() && !equal_scalars(items[at].first, key)) ++at;
  return at;
}

void Dict::set(const Value& key, const Value& value) {
  if (!scalar(key)) fail(str_cat("a ", type_name(key), " as a key of a mapping is not supported"));
  if (const size_t at = place(key); at < items.size()) {
    items[at].second = value;
    return;
  }
  items.emplace_back(key, value);
  if (items.size() <= kIndexed) return;
  if (index_.empty()) {
    for (size_t i = 0; i < items.size(); ++i) {
      if (items[i].first.is(Type::kString)) index_[items[i].first.bytes()] = i;
    }
  } else if (key.is(Type::kString)) {
    index_[key.bytes()] = items.size() - 1;
  }
}

const Value* Dict::find(std::string_view key) const {
  if (items.size() > kIndexed) {
    const auto found = index_.find(key);
    return found == index_.end() ? nullptr : &items[found->second].second;
  }
  for (const auto& [name, value] : items) {
    if (name.is(Type::kString) && name.bytes() == key) return &value;
  }
  return nullptr;
}

const Value* Dict::find(const Value& key) const {
  const size_t at = place(key);
  return at < items.size() ? &items[at].second : nullptr;
}

void Namespace::set(std::string_view name, const Value& value) {
  for (auto& [key, held] : items) {
    if (key == name) {
      held = value;
      return;
    }
  }
  items.emplace_back(std::string(name), value);
}

const Value* Namespace::find(std::string_view name) const {
  for (const auto& [key, held] : items) {
    if (key == name) return &held;
  }
  return nullptr;
}

void Heap::charge(size_t bytes) {
  if (bytes > static_cast<size_t>(limit_ - used_)) {
    throw Failure(str_cat("rendering takes more than ", limit_ >> 20, " MiB of memory"));
  }
  used_ += static_cast<int64_t>(bytes);
}

void Heap::too_many_steps() const {
  throw Failure(str_cat("rendering takes more than ", steps_, " steps"));
}

Value Heap::string(Text text, bool safe) {
  charge(text.bytes.size() + text.spans.size() * sizeof(Span));
  auto* made = make<String>();
  made->text = std::move(text);
  made->safe = safe;
  return Value(static_cast<const String*>(made));
}

Value Heap::list(std::vector<Value> items, ListKind kind) {
  charge(items.size() * sizeof(Value));
  auto* made = make<List>();
  made->kind = kind;
  made->items = std::move(items);
  return Value(static_cast<const List*>(made));
}

std::string_view type_name(const Value& value) {
  switch (value.type) {
    case Type::kUndefined:
      return "Undefined";
    case Type::kNone:
      return "NoneType";
    case Type::kBool:
      return "bool";
    case Type::kInt:
      return "int";
    case Type::kFloat:
      return "float";
    case Type::kString:
      return "str";
    case Type::kList:
      switch (value.list->kind) {
        case ListKind::kList:
          return "list";
        case ListKind::kTuple:
          return "tuple";
        case ListKind::kGenerator:
          return "generator";
        case ListKind::kView:
          return "dict view";
        case ListKind::kRange:
          return "range";
      }
      return "list";
    case Type::kDict:
      return "dict";
    case Type::kNamespace:
      return "namespace";
    case Type::kMacro:
      return "macro";
    case Type::kMethod:
      return "method";
    case Type::kFunction:
      return "function";
    case Type::kLoop:
      return "loop";
  }
  return "value";
}

bool truthy(const Value& value) {
  switch (value.type) {
    case Type::kUndefined:
    case Type::kNone:
      return false;
    case Type::kBool:
      return value.boolean;
    case Type::kInt:
      return value.integer != 0;
    case Type::kFloat:
      return value.number != 0;
    case Type::kString:
      return !value.bytes().empty();
    case Type::kList:
      return value.list->kind == ListKind::kGenerator || !value.list->items.empty();
    case Type::kDict:
      return !value.dict->items.empty();
    default:
      return true;
  }
}

bool is_number(const Value& value) {
  return value.is(Type::kBool) || value.is(Type::kInt) || value.is(Type::kFloat);
}

double as_double(const Value& value) {
  return value.is(Type::kFloat) ? value.number : static_cast<double>(as_integer(value));
}

bool equal(Heap& heap, const Value& a, const Value& b, int depth) {
  check_compared_depth(depth);
  heap.step();
  if (is_number(a) && is_number(b)) return equal_scalars(a, b);
  if (a.type != b.type) return false;
  switch (a.type) {
    case Type::kUndefined:
    case Type::kNone:
      return true;
    case Type::kString:
      return a.string == b.string || a.bytes() == b.bytes();
    case Type::kList:
      if (a.list == b.list) return true;
      if (a.list->kind != b.list->kind || a.list->kind == ListKind::kGenerator) return false;
      return std::ranges::equal(a.list->items, b.list->items,
                                [&](const Value& x, const Value& y) { return equal(heap, x, y, depth + 1); });
    case Type::kDict:
      if (a.dict == b.dict) return true;
      return a.dict->items.size() == b.dict->items.size() &&
             std::ranges::all_of(a.dict->items, [&](const auto& item) {
               const Value* other = b.dict->find(item.first);
               return other != nullptr && equal(heap, item.second, *other, depth + 1);
             });
    case Type::kNamespace:
      return a.ns == b.ns;
    case Type::kMacro:
      return a.macro == b.macro;
    case Type::kFunction:
      return a.function == b.function;
    case Type::kMethod:
      return a.method->name == b.method->name && equal(heap, a.method->self, b.method->self, depth + 1);
    default:
      return false;
  }
}

int compare(Heap& heap, const Value& a, const Value& b, int depth) {
  check_compared_depth(depth);
  heap.step();
  require_defined(a);
  require_defined(b);
  if (is_number(a) && is_number(b)) {
    return both_integers(a, b) ? sign(as_integer(a) <=> as_integer(b)) : sign(as_double(a) <=> as_double(b));
  }
  if (a.is(Type::kString) && b.is(Type::kString)) {
    heap.scan(std::min(a.bytes().size(), b.bytes().size()));
    return sign(a.bytes() <=> b.bytes());
  }
  if (a.is(Type::kList) && b.is(Type::kList) && a.list->kind == b.list->kind &&
      (a.list->kind == ListKind::kList || a.list->kind == ListKind::kTuple)) {
    const auto& left = a.list->items;
    const auto& right = b.list->items;
    for (size_t i = 0; i < std::min(left.size(), right.size()); ++i) {
      if (!equal(heap, left[i], right[i], depth + 1)) return compare(heap, left[i], right[i], depth + 1);
    }
    return sign(left.size() <=> right.size());
  }
  fail(str_cat("a ", type_name(a), " and a ", type_name(b), " have no order"));
}

void require_defined(const Value& value) {
  if (value.undefined())
    fail(value.hint == nullptr ? "a value is undefined" : str_cat("'", *value.hint, "' is undefined"));
}

}  // namespace pesc::jinja
