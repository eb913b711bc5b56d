// Cuts a template into tokens, as Jinja does with trim_blocks (the newline behind a block's end goes),
// lstrip_blocks (the blanks before a block that begins its line go) and without keep_trailing_newline.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pesc::jinja {

enum class Lexeme : uint8_t {
  kData,  // text outside of tags
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  Lexeme kind = Lexeme::kEnd;
  int line = 1;
  std::string text;  // of a string: what it stands for
  int64_t integer = 0;
  double number = 0;
};

// Throws Failure with the line.
[[nodiscard]] std::vector<Token> lex(std::string_view source);

}  // namespace pesc::jinja
