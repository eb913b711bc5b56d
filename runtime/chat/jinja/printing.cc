#include "runtime/chat/jinja/printing.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "ops/core/check.h"
#include "runtime/chat/jinja/unicode.h"

namespace pesc::jinja {
namespace {

constexpr int kMaxPrintedDepth = 100;  // of lists and mappings inside one another

std::string hex(char32_t code, int digits) {
  std::array<char, 16> text{};
  std::snprintf(text.data(), text.size(), "%0*x", digits, static_cast<unsigned>(code));
  return text.data();
}

[[noreturn]] void cannot(const Value& value, const char* what) {
  require_defined(value);
  fail(str_cat("a ", type_name(value), " ", what));
}

void check_printed_depth(int depth) {
  if (depth > kMaxPrintedDepth)
    fail(str_cat("values that are nested more than ", kMaxPrintedDepth, " deep are printed"));
}

// Appends the text with `escape` asked for each character; an empty answer leaves it as it is.
template <class Escape>
void append_escaped(Text& out, const Text& text, const Escape& escape) {
  size_t begin = 0;
  for (size_t at = 0; at < text.bytes.size();) {
    const Character c = character_at(text.bytes, at);
    if (const std::string by = escape(c.code); !by.empty()) {
      out.append(text, begin, at);
      out.append(by, text.origin_at(at));
      begin = at + c.size;
    }
    at += c.size;
  }
  out.append(text, begin, text.bytes.size());
}

void append_repr(Text& out, const Text& text) {
  const bool single = text.bytes.find('\'') == std::string::npos || text.bytes.find('"') != std::string::npos;
  const char quote = single ? '\'' : '"';
  out.append(std::string_view(&quote, 1));
  append_escaped(out, text, [quote](char32_t c) -> std::string {
    if (c == '\\') return "\\\\";
    if (c == static_cast<char32_t>(quote)) return std::string("\\") + quote;
    if (c == '\n') return "\\n";
    if (c == '\r') return "\\r";
    if (c == '\t') return "\\t";
    if (c >= 0x20 && c < 0x7F) return {};
    if (c >= 0x7F && is_printable(c)) return {};
    if (c < 0x100) return "\\x" + hex(c, 2);
    return c < 0x10000 ? "\\u" + hex(c, 4) : "\\U" + hex(c, 8);
  });
  out.append(std::string_view(&quote, 1));
}

class Printer {
 public:
  explicit Printer(Heap& heap) : heap_(heap) {}
  Text text;

  // `inside` a list or mapping strings are quoted.
  void print(const Value& value, bool inside, int depth) {
    check_printed_depth(depth);
    heap_.step();
    switch (value.type) {
      case Type::kUndefined:
        if (inside) text.append("Undefined");
        return;
      case Type::kNone:
        text.append("None");
        return;
      case Type::kBool:
        text.append(value.boolean ? "True" : "False");
        return;
      case Type::kInt:
        text.append(std::to_string(value.integer));
        return;
      case Type::kFloat:
        text.append(number_text(value.number));
        return;
      case Type::kString:
        heap_.charge(value.bytes().size());
        heap_.scan(value.bytes().size());
        if (inside) {
          append_repr(text, value.string->text);
        } else {
          text.append(value.string->text);
        }
        return;
      case Type::kList:
        list(value, depth);
        return;
      case Type::kDict:
        dict(*value.dict, depth);
        return;
      default:
        cannot(value, "cannot be printed");
    }
  }

 private:
  void list(const Value& value, int depth) {
    const bool tuple = value.list->kind == ListKind::kTuple;
    if (!tuple && value.list->kind != ListKind::kList) cannot(value, "cannot be printed");
    text.append(tuple ? "(" : "[");
    const std::vector<Value>& items = value.list->items;
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) text.append(", ");
      print(items[i], true, depth + 1);
    }
    text.append(tuple ? items.size() == 1 ? ",)" : ")" : "]");
  }

  void dict(const Dict& dict, int depth) {
    text.append("{");
    for (size_t i = 0; i < dict.items.size(); ++i) {
      if (i > 0) text.append(", ");
      print(dict.items[i].first, true, depth + 1);
      text.append(": ");
      print(dict.items[i].second, true, depth + 1);
    }
    text.append("}");
  }

  Heap& heap_;
};

class JsonPrinter {
 public:
  JsonPrinter(Heap& heap, const JsonStyle& style) : heap_(heap), style_(style) {}
  Text text;

  void print(const Value& value, int depth) {
    check_printed_depth(depth);
    heap_.step();
    switch (value.type) {
      case Type::kNone:
        text.append("null");
        return;
      case Type::kBool:
        text.append(value.boolean ? "true" : "false");
        return;
      case Type::kInt:
        text.append(std::to_string(value.integer));
        return;
      case Type::kFloat:
        text.append(number(value.number));
        return;
      case Type::kString:
        string(value.string->text);
        return;
      case Type::kDict:
        dict(*value.dict, depth);
        return;
      case Type::kList:
        if (value.list->kind == ListKind::kList || value.list->kind == ListKind::kTuple) {
          list(value.list->items, depth);
          return;
        }
        [[fallthrough]];
      default:
        cannot(value, "has no JSON form");
    }
  }

 private:
  static std::string number(double value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
    return number_text(value);
  }

  void string(const Text& of) {
    heap_.charge(of.bytes.size());
    heap_.scan(of.bytes.size());
    text.append("\"");
    append_escaped(text, of, [this](char32_t c) -> std::string {
      switch (c) {
        case '"':
          return "\\\"";
        case '\\':
          return "\\\\";
        case '\n':
          return "\\n";
        case '\r':
          return "\\r";
        case '\t':
          return "\\t";
        case '\b':
          return "\\b";
        case '\f':
          return "\\f";
        default:
          break;
      }
      if (c >= 0x20 && (c < 0x7F || !style_.ascii)) return {};
      if (c < 0x10000) return "\\u" + hex(c, 4);
      const char32_t rest = c - 0x10000;
      return "\\u" + hex(0xD800 + (rest >> 10U), 4) + "\\u" + hex(0xDC00 + (rest & 0x3FFU), 4);
    });
    text.append("\"");
  }

  void new_line(int depth) {
    if (style_.indent < 0) return;
    text.append("\n");
    heap_.charge(style_.indent_text.size() * static_cast<size_t>(depth));
    for (int i = 0; i < depth; ++i) text.append(style_.indent_text);
  }

  void list(const std::vector<Value>& items, int depth) {
    text.append("[");
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) text.append(style_.item_separator);
      new_line(depth + 1);
      print(items[i], depth + 1);
    }
    if (!items.empty()) new_line(depth);
    text.append("]");
  }

  void key(const Value& value) {
    if (value.is(Type::kString)) {
      string(value.string->text);
      return;
    }
    text.append("\"");
    print(value, 0);
    text.append("\"");
  }

  void dict(const Dict& dict, int depth) {
    std::vector<const std::pair<Value, Value>*> items;
    for (const auto& item : dict.items) items.push_back(&item);
    if (style_.sort_keys)
      std::ranges::stable_sort(
          items, [&](const auto* a, const auto* b) { return compare(heap_, a->first, b->first) < 0; });
    text.append("{");
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) text.append(style_.item_separator);
      new_line(depth + 1);
      key(items[i]->first);
      text.append(style_.key_separator);
      print(items[i]->second, depth + 1);
    }
    if (!items.empty()) new_line(depth);
    text.append("}");
  }

  Heap& heap_;
  const JsonStyle& style_;
};

}  // namespace

std::string number_text(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number > 0 ? "inf" : "-inf";
  std::array<char, 40> text{};
  const auto end =
      std::to_chars(text.data(), text.data() + text.size(), number, std::chars_format::scientific).ptr;
  const std::string shortest(text.data(), end);
  const size_t e = shortest.find('e');
  const int exponent = std::stoi(shortest.substr(e + 1));
  if (exponent < -4 || exponent >= 16) return shortest;
  std::string digits;
  for (const char c : shortest.substr(0, e)) {
    if (c >= '0' && c <= '9') digits += c;
  }
  const std::string sign = shortest[0] == '-' ? "-" : "";
  if (exponent < 0) return sign + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  const auto whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() < whole) digits.append(whole - digits.size(), '0');
  const std::string fraction = digits.substr(whole);
  return sign + digits.substr(0, whole) + "." + (fraction.empty() ? "0" : fraction);
}

Text to_text(Heap& heap, const Value& value) {
  if (value.is(Type::kString)) return value.string->text;
  Printer printer(heap);
  printer.print(value, false, 0);
  return std::move(printer.text);
}

Text to_json(Heap& heap, const Value& value, const JsonStyle& style) {
  JsonPrinter printer(heap, style);
  printer.print(value, 0);
  return std::move(printer.text);
}

}  // namespace pesc::jinja
