#include "runtime/tokenizer/unicode.h"

#include <algorithm>
#include <array>
#include <iterator>

#include "runtime/tokenizer/unicode_numbers.h"
#include "runtime/tokenizer/unicode_tables.h"

namespace pesc::unicode {
namespace {

// In the order of unicode_tables.py.
constexpr std::array<std::string_view, 29> kCategoryNames{
    "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe",
    "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Co", "Cn"};

CharSet read_set(std::string_view table) {
  Numbers numbers(table);
  std::vector<CharRange> ranges;
  char32_t at = 0;
  while (!numbers.done()) {
    const char32_t first = at + numbers.next();
    const char32_t last = first + numbers.next();
    ranges.push_back({first, last});
    at = last + 1;
  }
  return CharSet(std::move(ranges));
}

}  // namespace

CharSet::CharSet(std::vector<CharRange> ranges) : ranges_(std::move(ranges)) {
  settle();
}

void CharSet::settle() {
  std::ranges::sort(ranges_, {}, &CharRange::first);
  std::vector<CharRange> joined;
  for (const CharRange& r : ranges_) {
    if (!joined.empty() && r.first <= joined.back().last + 1) {
      joined.back().last = std::max(joined.back().last, r.last);
    } else {
      joined.push_back(r);
    }
  }
  ranges_ = std::move(joined);
  ascii_[0] = ascii_[1] = 0;
  for (const CharRange& r : ranges_) {
    for (char32_t c = r.first; c <= r.last && c < 128; ++c) ascii_[c >> 6] |= uint64_t{1} << (c & 63);
  }
}

bool CharSet::contains_beyond_ascii(char32_t c) const {
  const auto behind = std::ranges::upper_bound(ranges_, c, {}, &CharRange::first);
  return behind != ranges_.begin() && c <= std::prev(behind)->last;
}

CharSet CharSet::complement() const {
  std::vector<CharRange> out;
  char32_t at = 0;
  for (const CharRange& r : ranges_) {
    if (r.first > at) out.push_back({at, r.first - 1});
    at = r.last + 1;
  }
  if (at <= kLast) out.push_back({at, kLast});
  return CharSet(std::move(out));
}

void CharSet::add(const CharSet& other) {
  ranges_.insert(ranges_.end(), other.ranges_.begin(), other.ranges_.end());
  settle();
}

void CharSet::add(char32_t first, char32_t last) {
  ranges_.push_back({first, last});
  settle();
}

const CharSet& regex_space() {
  static const CharSet set = read_set(unicode_tables::kRegexSpace);
  return set;
}
const CharSet& space() {
  static const CharSet set = read_set(unicode_tables::kSpace);
  return set;
}
const CharSet& token_space() {
  static const CharSet set = read_set(unicode_tables::kTokenSpace);
  return set;
}
const CharSet& word() {
  static const CharSet set = read_set(unicode_tables::kWord);
  return set;
}
const CharSet& numeric() {
  static const CharSet set = read_set(unicode_tables::kNumeric);
  return set;
}
const CharSet& punctuation() {
  static const CharSet set = read_set(unicode_tables::kPunctuation);
  return set;
}

bool category(std::string_view name, CharSet& set) {
  if (name.empty() || name.size() > 2) return false;
  std::vector<CharRange> ranges;
  Numbers numbers(unicode_tables::kCategories);
  bool known = false;
  char32_t at = 0;
  while (!numbers.done()) {
    const char32_t length = numbers.next();
    if (kCategoryNames[numbers.next()].starts_with(name)) {
      ranges.push_back({at, at + length - 1});
      known = true;
    }
    at += length;
  }
  set = CharSet(std::move(ranges));
  return known;
}

char32_t next_char(std::string_view text, size_t& at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const char32_t lead = byte(at);
  if (lead < 0x80) return ++at, lead;
  if (lead < 0xE0) {
    at += 2;
    return (lead & 0x1F) << 6 | (byte(at - 1) & 0x3FU);
  }
  if (lead < 0xF0) {
    at += 3;
    return (lead & 0x0F) << 12 | (byte(at - 2) & 0x3FU) << 6 | (byte(at - 1) & 0x3FU);
  }
  at += 4;
  return (lead & 0x07) << 18 | (byte(at - 3) & 0x3FU) << 12 | (byte(at - 2) & 0x3FU) << 6 |
         (byte(at - 1) & 0x3FU);
}

void append_utf8(char32_t c, std::string& out) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | c >> 6);
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | c >> 12);
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | c >> 18);
    out += static_cast<char>(0x80 | (c >> 12 & 0x3F));
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  }
}

}  // namespace pesc::unicode
