// Characters as the original library takes them (unicode_tables.py): sets of them, lower case, NFD and NFC.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pesc::unicode {

inline constexpr char32_t kLast = 0x10FFFF;

struct CharRange {
  char32_t first = 0;
  char32_t last = 0;
};

// Characters, as ascending ranges that do not touch.
class CharSet {
 public:
  CharSet() = default;
  explicit CharSet(std::vector<CharRange> ranges);  // in any order
  [[nodiscard]] const std::vector<CharRange>& ranges() const { return ranges_; }
  [[nodiscard]] bool contains(char32_t c) const {
    return c < 128 ? (ascii_[c >> 6] >> (c & 63) & 1) != 0 : contains_beyond_ascii(c);
  }
  [[nodiscard]] CharSet complement() const;
  void add(const CharSet& other);
  void add(char32_t first, char32_t last);

 private:
  void settle();
  [[nodiscard]] bool contains_beyond_ascii(char32_t c) const;
  std::vector<CharRange> ranges_;
  uint64_t ascii_[2] = {0, 0};
};

[[nodiscard]] const CharSet& regex_space();
[[nodiscard]] const CharSet& space();
[[nodiscard]] const CharSet& token_space();
[[nodiscard]] const CharSet& word();
[[nodiscard]] const CharSet& numeric();
[[nodiscard]] const CharSet& punctuation();
// Of a general category, "Lu", or of all that begin with a letter, "L". False for any other name.
[[nodiscard]] bool category(std::string_view name, CharSet& set);

// One character of a normalised text. `change` says what became of the old text's characters: 0 it stands for
// the next one, 1 it is new, -N it stands for the next one and the N behind it are gone.
struct Changed {
  char32_t c = 0;
  int32_t change = 0;
};

// Whether the form leaves the text as it is; false where that is not sure without making it.
[[nodiscard]] bool is_surely_nfd(std::string_view text);
[[nodiscard]] bool is_surely_nfc(std::string_view text);
[[nodiscard]] std::vector<Changed> nfd(std::string_view text);
[[nodiscard]] std::vector<Changed> nfc(std::string_view text);
[[nodiscard]] std::vector<Changed> lowercase(std::string_view text);

// The character at byte `at` of well-formed UTF-8; moves `at` behind it.
[[nodiscard]] char32_t next_char(std::string_view text, size_t& at);
void append_utf8(char32_t c, std::string& out);
[[nodiscard]] inline bool continues(char byte) {
  return (static_cast<unsigned char>(byte) & 0xC0U) == 0x80U;
}

}  // namespace pesc::unicode
