#include "runtime/chat/jinja/lexer.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>

#include "ops/core/check.h"
#include "runtime/chat/jinja/unicode.h"
#include "runtime/chat/jinja/value.h"

namespace pesc::jinja {
namespace {

constexpr size_t kMaxSource = size_t{1} << 20;

// Longer ones first.
constexpr std::array kOperators =
    std::to_array<std::string_view>({"//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
                                     "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"});

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}
bool is_name(char c) {
  return is_name_start(c) || is_digit(c);
}

std::string with_plain_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
    } else if (i + 1 == source.size() || source[i + 1] != '\n') {
      out += '\n';
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(with_plain_newlines(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) text_and_tag();
    add(Lexeme::kEnd, "the end of the template");
    return std::move(tokens_);
  }

 private:
  [[nodiscard]] std::string_view rest() const { return std::string_view(source_).substr(at_); }
  [[nodiscard]] bool next_is(std::string_view text) const { return rest().starts_with(text); }

  Token& add(Lexeme kind, std::string_view text = {}) {
    tokens_.push_back({kind, line_, std::string(text)});
    return tokens_.back();
  }

  void advance(size_t to) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<ptrdiff_t>(at_),
                                         source_.begin() + static_cast<ptrdiff_t>(to), '\n'));
    at_ = to;
  }

  // The end of the white space that begins at `from`.
  [[nodiscard]] size_t skip_spaces(size_t from) const {
    while (from < source_.size()) {
      const Character c = character_at(source_, from);
      if (!is_space(c.code)) break;
      from += c.size;
    }
    return from;
  }

  [[nodiscard]] static std::string_view without_spaces_behind(std::string_view text) {
    while (!text.empty()) {
      const size_t last = previous(text, text.size());
      if (!is_space(character_at(text, last).code)) break;
      text = text.substr(0, last);
    }
    return text;
  }

  // The text before a tag, less what the tag takes away.
  void data(std::string_view text, char sign, bool variable) {
    if (sign == '-') {
      text = without_spaces_behind(text);
    } else if (sign != '+' && !variable) {
      const size_t line_begin = text.rfind('\n') + 1;  // 0 where there is no newline
      if ((line_begin > 0 || line_starts_) && skip_spaces_in(text, line_begin) == text.size())
        text = text.substr(0, line_begin);
    }
    if (!text.empty()) add(Lexeme::kData, text);
  }
  [[nodiscard]] static size_t skip_spaces_in(std::string_view text, size_t from) {
    while (from < text.size()) {
      const Character c = character_at(text, from);
      if (!is_space(c.code)) break;
      from += c.size;
    }
    return from;
  }

  void text_and_tag() {
    size_t open = at_;
    while (open < source_.size() &&
           !(source_[open] == '{' && open + 1 < source_.size() &&
             (source_[open + 1] == '{' || source_[open + 1] == '%' || source_[open + 1] == '#'))) {
      ++open;
    }
    const std::string_view text = std::string_view(source_).substr(at_, open - at_);
    if (open == source_.size()) {
      if (!text.empty()) add(Lexeme::kData, text);
      advance(open);
      return;
    }
    const char kind = source_[open + 1];
    size_t inside = open + 2;
    char sign = inside < source_.size() ? source_[inside] : ' ';
    if (sign != '-' && sign != '+') sign = ' ';
    inside += sign == ' ' ? 0 : 1;
    data(text, sign, kind == '{');
    advance(inside);
    line_starts_ = false;
    if (kind == '#') {
      comment();
    } else if (kind == '%' && raw()) {
      return;
    } else {
      add(kind == '{' ? Lexeme::kVariableBegin : Lexeme::kBlockBegin, kind == '{' ? "{{" : "{%");
      inside_tag(kind == '{');
    }
  }

  // Behind "%}" or "#}": a sign before it says what happens to the white space that follows.
  void end_of_block(char sign) {
    if (sign == '-') {
      advance(skip_spaces(at_));
    } else if (sign != '+' && next_is("\n")) {
      advance(at_ + 1);
    }
    line_starts_ = at_ > 0 && source_[at_ - 1] == '\n';
  }

  void comment() {
    const size_t end = source_.find("#}", at_);
    if (end == std::string::npos) fail("a comment has no end (\"#}\")", line_);
    const char sign = end > at_ ? source_[end - 1] : ' ';
    advance(end + 2);
    end_of_block(sign);
  }

  // {% raw %}..{% endraw %}: text as it is.
  bool raw() {
    size_t at = skip_spaces(at_);
    if (!std::string_view(source_).substr(at).starts_with("raw")) return false;
    at = skip_spaces(at + 3);
    const bool strip = source_[std::min(at, source_.size() - 1)] == '-';
    if (strip) ++at;
    if (!std::string_view(source_).substr(at).starts_with("%}")) return false;
    at += 2;
    advance(strip ? skip_spaces(at) : at);
    for (size_t open = source_.find("{%", at_); open != std::string::npos;
         open = source_.find("{%", open + 2)) {
      size_t end = open + 2;
      const char before = end < source_.size() ? source_[end] : ' ';
      if (before == '-' || before == '+') ++end;
      end = skip_spaces(end);
      if (!std::string_view(source_).substr(end).starts_with("endraw")) continue;
      end = skip_spaces(end + 6);
      const char after = end < source_.size() ? source_[end] : ' ';
      if (after == '-' || after == '+') ++end;
      if (!std::string_view(source_).substr(end).starts_with("%}")) continue;
      data(std::string_view(source_).substr(at_, open - at_), before, false);
      advance(end + 2);
      end_of_block(after);
      return true;
    }
    fail("a raw block has no end (\"{% endraw %}\")", line_);
  }

  bool end_of_tag(bool variable) {
    const std::string_view end = variable ? "}}" : "%}";
    char sign = ' ';
    if (next_is("-") || (!variable && next_is("+"))) sign = source_[at_];
    if (!rest().substr(sign == ' ' ? 0 : 1).starts_with(end)) return false;
    advance(at_ + (sign == ' ' ? 2 : 3));
    add(variable ? Lexeme::kVariableEnd : Lexeme::kBlockEnd, end);
    if (variable) {
      if (sign == '-') advance(skip_spaces(at_));
      line_starts_ = source_[at_ - 1] == '\n';
    } else {
      end_of_block(sign);
    }
    return true;
  }

  void inside_tag(bool variable) {
    std::vector<char> brackets;
    const int begin = line_;
    while (true) {
      if (brackets.empty() && end_of_tag(variable)) return;
      if (at_ >= source_.size()) fail(str_cat("a tag that begins here has no end"), begin);
      const char c = source_[at_];
      if (const size_t spaces = skip_spaces(at_); spaces > at_) {
        advance(spaces);
      } else if (is_digit(c)) {
        number();
      } else if (is_name_start(c)) {
        size_t end = at_;
        while (end < source_.size() && is_name(source_[end])) ++end;
        add(Lexeme::kName, std::string_view(source_).substr(at_, end - at_));
        advance(end);
      } else if (c == '"' || c == '\'') {
        string(c);
      } else {
        operator_sign(brackets);
      }
    }
  }

  void operator_sign(std::vector<char>& brackets) {
    for (const std::string_view sign : kOperators) {
      if (!next_is(sign)) continue;
      const char c = sign[0];
      if (c == '(' || c == '[' || c == '{') brackets.push_back(c == '(' ? ')' : c == '[' ? ']' : '}');
      if (c == ')' || c == ']' || c == '}') {
        if (brackets.empty() || brackets.back() != c)
          fail(str_cat("'", sign, "' is not expected here"), line_);
        brackets.pop_back();
      }
      add(Lexeme::kOperator, sign);
      advance(at_ + sign.size());
      return;
    }
    fail(str_cat("the character '", rest().substr(0, character_at(source_, at_).size),
                 "' is not expected in a tag"),
         line_);
  }

  void number() {
    size_t end = at_;
    while (end < source_.size() && (is_name(source_[end]))) ++end;
    bool real = false;
    const bool after_dot = !tokens_.empty() && tokens_.back().text == "." && source_[at_ - 1] == '.';
    if (!after_dot && end + 1 < source_.size() && source_[end] == '.' && is_digit(source_[end + 1])) {
      real = true;
      ++end;
      while (end < source_.size() && is_name(source_[end])) ++end;
    }
    std::string digits(source_, at_, end - at_);
    std::erase(digits, '_');
    const bool hex = digits.starts_with("0x") || digits.starts_with("0X");
    if (!hex && digits.find_first_of("eE") != std::string::npos) {
      real = true;
      if (end < source_.size() && (source_[end] == '-' || source_[end] == '+')) {
        digits += source_[end++];
        while (end < source_.size() && is_digit(source_[end])) digits += source_[end++];
      }
    }
    if (!real && digits.size() > 1 && digits[0] == '0' &&
        digits.find_first_not_of('0') != std::string::npos && is_digit(digits[1]))
      fail(str_cat("the number ", digits, " begins with 0"), line_);
    Token& token = add(real ? Lexeme::kFloat : Lexeme::kInteger, digits);
    const char* first = digits.data();
    const char* last = first + digits.size();
    std::from_chars_result read{};
    if (real) {
      read = std::from_chars(first, last, token.number);
    } else {
      int base = 10;
      if (digits.size() > 2 && digits[0] == '0' && !is_digit(digits[1])) {
        base = hex ? 16 : digits[1] == 'o' || digits[1] == 'O' ? 8 : 2;
        first += 2;
      }
      read = std::from_chars(first, last, token.integer, base);
    }
    if (read.ec != std::errc() || read.ptr != last)
      fail(str_cat("'", digits, "' is no number of 64 bits"), line_);
    advance(end);
  }

  void string(char quote) {
    size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) fail("a string has no end", line_);
    add(Lexeme::kString, unescaped(std::string_view(source_).substr(at_ + 1, end - at_ - 1)));
    advance(end + 1);
  }

  // Python's escapes. One that is not known stays, with its backslash.
  std::string unescaped(std::string_view text) const {
    constexpr std::string_view kLetters = "nrtabfv\\'\"";
    constexpr std::string_view kMeanings = "\n\r\t\a\b\f\v\\'\"";
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] != '\\') {
        out += text[i];
        continue;
      }
      const char letter = text[++i];  // the lexer has seen a character behind each backslash
      if (const size_t known = kLetters.find(letter); known != std::string_view::npos) {
        out += kMeanings[known];
      } else if (letter == '\n') {
        continue;
      } else if (letter == 'x' || letter == 'u' || letter == 'U') {
        const size_t digits = letter == 'x' ? 2 : letter == 'u' ? 4 : 8;
        append_code(out, text.substr(i + 1, digits), digits, 16);
        i += digits;
      } else if (letter >= '0' && letter <= '7') {
        size_t digits = 1;
        while (digits < 3 && i + digits < text.size() && text[i + digits] >= '0' && text[i + digits] <= '7')
          ++digits;
        append_code(out, text.substr(i, digits), digits, 8);
        i += digits - 1;
      } else if (letter == 'N') {
        fail("characters by name (\"\\N{..}\") are not supported in a string", line_);
      } else {
        out += '\\';
        out += letter;
      }
    }
    return out;
  }

  void append_code(std::string& out, std::string_view digits, size_t count, int base) const {
    uint32_t code = 0;
    const auto read = std::from_chars(digits.data(), digits.data() + digits.size(), code, base);
    if (digits.size() != count || read.ec != std::errc() || read.ptr != digits.data() + digits.size() ||
        code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) {
      fail(str_cat("'\\", digits, "' in a string stands for no character"), line_);
    }
    append_utf8(out, code);
  }

  std::string source_;
  std::vector<Token> tokens_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starts_ = true;  // the text that follows begins a line
};

}  // namespace

std::vector<Token> lex(std::string_view source) {
  if (source.size() > kMaxSource) fail(str_cat("the template has more than ", kMaxSource >> 10, " KiB"));
  return Lexer(source).run();
}

}  // namespace pesc::jinja
