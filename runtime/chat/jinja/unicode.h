// What Python knows of characters and the filters need: white space, case, and what repr() prints as it is.
// The tables are made by runtime/chat/jinja/make_unicode_tables.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace pesc::jinja {

// The character at `offset` of well-formed UTF-8, and the bytes that it has.
struct Character {
  char32_t code = 0;
  size_t size = 1;
};
[[nodiscard]] Character character_at(std::string_view text, size_t offset);
// The offset of the character before `offset`. REQUIRES offset > 0.
[[nodiscard]] size_t previous(std::string_view text, size_t offset);
void append_utf8(std::string& text, char32_t code);

[[nodiscard]] size_t count_characters(std::string_view text);
// The byte offset of character `index`; text.size() behind the last.
[[nodiscard]] size_t offset_of(std::string_view text, size_t index);

[[nodiscard]] bool is_space(char32_t code);      // str.isspace()
[[nodiscard]] bool is_printable(char32_t code);  // str.isprintable()
[[nodiscard]] bool is_cased(char32_t code);
[[nodiscard]] bool is_case_ignorable(char32_t code);

enum class Case : uint8_t { kUpper, kLower, kTitle };
// Appends the character in that case: one to three characters. (The final sigma is the caller's business.)
void append_case(std::string& text, char32_t code, Case to);

}  // namespace pesc::jinja
