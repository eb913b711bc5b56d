#include "runtime/chat/jinja/unicode.h"

#include <algorithm>
#include <span>

#include "runtime/chat/jinja/unicode_tables.h"

namespace pesc::jinja {
namespace {

bool in(std::span<const CodeRange> ranges, char32_t code) {
  const auto range = std::ranges::partition_point(ranges, [&](const CodeRange& r) { return r.last < code; });
  return range != ranges.end() && range->first <= code;
}

bool continues(char c) {
  return (static_cast<unsigned char>(c) & 0xC0U) == 0x80U;
}

struct CaseTables {
  std::span<const CaseRange> ranges;
  std::span<const CaseText> texts;
};

CaseTables tables(Case to) {
  switch (to) {
    case Case::kUpper:
      return {{kUpper, kUpperSize}, {kUpperTexts, kUpperTextsSize}};
    case Case::kLower:
      return {{kLower, kLowerSize}, {kLowerTexts, kLowerTextsSize}};
    case Case::kTitle:
      return {{kTitle, kTitleSize}, {kTitleTexts, kTitleTextsSize}};
  }
  return {};
}

}  // namespace

Character character_at(std::string_view text, size_t offset) {
  const auto lead = static_cast<unsigned char>(text[offset]);
  if (lead < 0x80) return {lead, 1};
  const size_t size = std::min<size_t>(lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4, text.size() - offset);
  char32_t code = lead & (0xFFU >> (size + 1));
  for (size_t i = 1; i < size; ++i)
    code = code << 6U | (static_cast<unsigned char>(text[offset + i]) & 0x3FU);
  return {code, size};
}

size_t previous(std::string_view text, size_t offset) {
  do {
    --offset;
  } while (offset > 0 && continues(text[offset]));
  return offset;
}

void append_utf8(std::string& text, char32_t code) {
  const auto add = [&](char32_t byte) { text += static_cast<char>(byte); };
  if (code < 0x80) {
    add(code);
  } else if (code < 0x800) {
    add(0xC0U | code >> 6U);
    add(0x80U | (code & 0x3FU));
  } else if (code < 0x10000) {
    add(0xE0U | code >> 12U);
    add(0x80U | (code >> 6U & 0x3FU));
    add(0x80U | (code & 0x3FU));
  } else {
    add(0xF0U | code >> 18U);
    add(0x80U | (code >> 12U & 0x3FU));
    add(0x80U | (code >> 6U & 0x3FU));
    add(0x80U | (code & 0x3FU));
  }
}

size_t count_characters(std::string_view text) {
  return text.size() - static_cast<size_t>(std::ranges::count_if(text, continues));
}

size_t offset_of(std::string_view text, size_t index) {
  size_t at = 0;
  for (; index > 0 && at < text.size(); --index) at += character_at(text, at).size;
  return std::min(at, text.size());
}

bool is_space(char32_t c) {
  return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool is_printable(char32_t code) {
  return !in({kNotPrintable, kNotPrintableSize}, code);
}

bool is_cased(char32_t code) {
  return in({kCased, kCasedSize}, code);
}

bool is_case_ignorable(char32_t code) {
  return in({kCaseIgnorable, kCaseIgnorableSize}, code);
}

void append_case(std::string& text, char32_t code, Case to) {
  const CaseTables found = tables(to);
  const auto special =
      std::ranges::partition_point(found.texts, [&](const CaseText& t) { return t.code < code; });
  if (special != found.texts.end() && special->code == code) {
    text += special->text;
    return;
  }
  const auto run =
      std::ranges::partition_point(found.ranges, [&](const CaseRange& r) { return r.last < code; });
  const bool changes =
      run != found.ranges.end() && run->first <= code && (code - run->first) % run->step == 0;
  append_utf8(text, changes ? static_cast<char32_t>(static_cast<int64_t>(code) + run->delta) : code);
}

}  // namespace pesc::jinja
