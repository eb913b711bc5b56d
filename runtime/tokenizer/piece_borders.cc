#include "runtime/tokenizer/piece_borders.h"

#include <algorithm>

namespace pesc {
namespace {

constexpr char32_t kSpaceMark = 0x2581;

// The character at `at`, which moves behind it; any value for bytes that form none. A space is its mark.
char32_t read_character(std::string_view text, size_t& at) {
  const auto lead = static_cast<unsigned char>(text[at++]);
  char32_t value = lead;
  int more = 0;
  if (lead >= 0xF0) {
    value = lead & 0x07U;
    more = 3;
  } else if (lead >= 0xE0) {
    value = lead & 0x0FU;
    more = 2;
  } else if (lead >= 0xC0) {
    value = lead & 0x1FU;
    more = 1;
  }
  for (; more > 0 && at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0U) == 0x80U; --more)
    value = value << 6 | (static_cast<unsigned char>(text[at++]) & 0x3FU);
  return value == U' ' ? kSpaceMark : value;
}

bool starts_character(char c) {
  return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U;
}

uint64_t pair_of(char32_t before, char32_t after) {
  return uint64_t{before} << 32 | after;
}

}  // namespace

void PieceBorders::add_piece(std::string_view piece) {
  char32_t before = 0;
  for (size_t at = 0; at < piece.size();) {
    const bool first = at == 0;
    const char32_t c = read_character(piece, at);
    if (!first) side_by_side_.insert(pair_of(before, c));
    before = c;
  }
}

bool PieceBorders::border(char32_t before, char32_t after) const {
  // White space at the end of a text may be taken away.
  if (before == kSpaceMark || before <= 0x20 || before == 0x3000 || before == 0xA0) return false;
  if (side_by_side_.contains(pair_of(before, after))) return false;
  if (facts_.maps_characters) return after == kSpaceMark && before < 0x7F;
  return !facts_.whole_words || after == kSpaceMark;
}

PieceBorders::Cut PieceBorders::next(std::string_view text, size_t from) const {
  size_t at = std::min(from, text.size());
  while (at < text.size() && !starts_character(text[at])) ++at;
  size_t previous = at;
  while (previous > 0 && !starts_character(text[--previous])) {
  }
  char32_t before = at > 0 ? read_character(text, previous) : U' ';
  const size_t end = at + std::min(kLongestSearch, text.size() - at);
  while (at < end) {
    size_t behind = at;
    const char32_t after = read_character(text, behind);
    if (border(before, after)) return {at, true};
    before = after;
    at = behind;
  }
  return {at, at == text.size()};
}

}  // namespace pesc
