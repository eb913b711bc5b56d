#include "runtime/tokenizer/pattern_rewrite.h"

#include <algorithm>
#include <cctype>
#include <optional>

#include "ops/core/check.h"
#include "runtime/text/utf8.h"
#include "runtime/tokenizer/unicode.h"

namespace pesc {
namespace {

using unicode::CharSet;

constexpr int kDeepestGroup = 64;

std::string hex(char32_t c) {
  std::string digits;
  for (; c != 0 || digits.empty(); c >>= 4) digits.insert(digits.begin(), "0123456789abcdef"[c & 15]);
  return "\\x{" + digits + "}";
}

// The characters above one byte are compared range by range: the longest ranges go first.
std::string written(const CharSet& set) {
  std::vector<unicode::CharRange> ranges = set.ranges();
  if (ranges.empty()) return "(?!)";
  std::ranges::stable_sort(ranges,
                           [](const auto& a, const auto& b) { return a.last - a.first > b.last - b.first; });
  std::string out = "[";
  for (const auto& r : ranges) {
    out += hex(r.first);
    if (r.last > r.first) out += "-" + hex(r.last);
  }
  return out + "]";
}

class Rewriter {
 public:
  explicit Rewriter(std::string_view pattern) : text_(pattern) {}

  std::string all() {
    if (const size_t valid = valid_utf8_prefix(text_); valid != text_.size())
      refuse(valid, "bytes that are no UTF-8");
    if (text_.empty()) refuse(0, "nothing");
    // At the start, and there alone, an option holds for the whole pattern.
    if (text_.starts_with("(?i)")) {
      at_ = 4;
      caseless_ = true;
    }
    alternatives(0);
    if (at_ < text_.size()) refuse(at_, "a ) without its (");
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(size_t at, const std::string& what) const {
    throw DataError(
        str_cat("the pattern '", text_, "' has ", what, " at byte ", at,
                ", which is not supported; supported are literals, classes, general categories as in "
                "\\p{L}, \\s, \\d, groups, look-around and quantifiers"));
  }
  [[nodiscard]] bool ended() const { return at_ == text_.size(); }
  [[nodiscard]] char peek() const { return ended() ? '\0' : text_[at_]; }
  bool take(std::string_view what) {
    if (!text_.substr(at_).starts_with(what)) return false;
    at_ += what.size();
    return true;
  }

  void alternatives(int depth) {
    if (depth > kDeepestGroup) refuse(at_, "groups nested too deep");
    folded_run_.clear();
    while (!ended() && peek() != ')') {
      if (take("|")) {
        out_ += '|';
        folded_run_.clear();
      } else {
        term(depth);
      }
    }
  }

  void term(int depth) {
    const size_t begin = out_.size();
    const size_t place = at_;
    const char c = peek();
    bool is_assertion = false;
    if (c == '(') {
      is_assertion = group(depth);
      folded_run_.clear();
    } else if (c == '[') {
      out_ += written(bracket());
      folded_run_.clear();
    } else if (c == '.') {
      ++at_;
      out_ += written(CharSet({{U'\n', U'\n'}}).complement());
      folded_run_.clear();
    } else if (c == '\\') {
      if (take("\\A") || take("\\z")) {
        out_ += text_.substr(at_ - 2, 2);
        is_assertion = true;
      } else {
        escape_or_set();
      }
    } else if (std::string_view("^$*+?{}").find(c) != std::string_view::npos) {
      refuse(place, str_cat("'", c, "'"));
    } else {
      literal(unicode::next_char(text_, at_), place);
    }
    quantifier(begin, is_assertion);
  }

  void escape_or_set() {
    const size_t place = at_;
    char32_t c = 0;
    if (const auto set = escape(c)) {
      if (caseless_) refuse(place, "a class under (?i)");
      out_ += written(*set);
      folded_run_.clear();
    } else {
      literal(c, place);
    }
  }

  void literal(char32_t c, size_t place) {
    if (!caseless_) {
      out_ += hex(c);
      return;
    }
    if (c >= 0x80) refuse(place, "a character beyond ASCII under (?i)");
    const auto lower = static_cast<char>(std::tolower(static_cast<int>(c)));
    folded_run_ += lower;
    // Two letters that one character may stand for: U+00DF, U+FB00 to U+FB06.
    for (const std::string_view pair : {"ss", "ff", "fi", "fl", "st"}) {
      if (folded_run_.ends_with(pair)) refuse(place, str_cat("'", pair, "' under (?i)"));
    }
    CharSet set({{c, c}});
    if (lower >= 'a' && lower <= 'z') {
      const auto letter = static_cast<char32_t>(lower);
      set.add(letter, letter);
      set.add(letter - 32, letter - 32);
      if (lower == 's') set.add(0x17F, 0x17F);    // LATIN SMALL LETTER LONG S
      if (lower == 'k') set.add(0x212A, 0x212A);  // KELVIN SIGN
    }
    out_ += written(set);
  }

  // Returns whether it is an assertion, which has no width.
  bool group(int depth) {
    const size_t place = at_;
    const bool outside = caseless_;
    bool is_assertion = false;
    if (take("(?:")) {
      out_ += "(?:";
    } else if (take("(?i:")) {
      out_ += "(?:";
      caseless_ = true;
    } else if (take("(?=") || take("(?!") || take("(?>")) {
      out_ += text_.substr(at_ - 3, 3);
      is_assertion = text_[at_ - 1] != '>';
    } else if (take("(?<=") || take("(?<!")) {
      out_ += text_.substr(at_ - 4, 4);
      is_assertion = true;
    } else if (text_.substr(at_).starts_with("(?")) {
      refuse(place, str_cat("'", text_.substr(place, 4), "'"));
    } else {
      take("(");
      out_ += "(?:";  // nobody looks at what a group has matched
    }
    alternatives(depth + 1);
    if (!take(")")) refuse(place, "a ( without its )");
    out_ += ')';
    caseless_ = outside;
    return is_assertion;
  }

  std::optional<unsigned> number() {
    const size_t begin = at_;
    unsigned value = 0;
    while (std::isdigit(static_cast<unsigned char>(peek())) != 0 && at_ - begin < 4)
      value = value * 10 + static_cast<unsigned>(text_[at_++] - '0');
    if (at_ == begin) return std::nullopt;
    return value;
  }

  void quantifier(size_t begin, bool is_assertion) {
    const size_t place = at_;
    bool repeats = false;
    std::string count;
    bool interval = false;
    if (take("*") || take("+") || take("?")) {
      count = text_[at_ - 1];
    } else if (take("{")) {
      interval = true;
      const auto least = number();
      const bool range = take(",");
      const auto most = range ? number() : least;
      if ((!least && !most) || !take("}")) refuse(place, "'{' that begins no {n,m}");
      if (least && most && *least > *most) refuse(place, "an interval that ends before it begins");
      constexpr unsigned kMost = 1000;
      if (least.value_or(0) > kMost || most.value_or(0) > kMost) refuse(place, "an interval above 1000");
      count = str_cat("{", least.value_or(0), ",", most ? str_cat(*most) : "", "}");
      if (!range && peek() == '?') refuse(place, "a {n}?");
    } else {
      return;
    }
    repeats = true;
    if (repeats && is_assertion) refuse(place, "a repeated assertion");
    folded_run_.clear();
    out_ += count;
    if (take("?")) {
      out_ += '?';
    } else if (peek() == '+') {
      ++at_;
      if (interval) {  // to Oniguruma no possessive one, but a repeated one
        out_.insert(begin, "(?:");
        out_ += ")+";
      } else {
        out_ += '+';
      }
    }
    if (std::string_view("*+?{").find(peek()) != std::string_view::npos && !ended())
      refuse(at_, "a quantifier behind a quantifier");
  }

  // Behind a backslash: a set, or the character in `c`.
  std::optional<CharSet> escape(char32_t& c) {
    const size_t place = at_++;
    if (ended()) refuse(place, "a \\ at its end");
    const char kind = text_[at_++];
    switch (kind) {
      case 's':
        return unicode::regex_space();
      case 'S':
        return unicode::regex_space().complement();
      case 'd':
      case 'D': {
        CharSet digits;
        (void)unicode::category("Nd", digits);
        return kind == 'd' ? digits : digits.complement();
      }
      case 'p':
      case 'P':
        return property(place, kind == 'P');
      case 't':
        c = U'\t';
        return std::nullopt;
      case 'n':
        c = U'\n';
        return std::nullopt;
      case 'r':
        c = U'\r';
        return std::nullopt;
      case 'f':
        c = U'\f';
        return std::nullopt;
      case 'v':
        c = U'\v';
        return std::nullopt;
      case 'a':
        c = U'\a';
        return std::nullopt;
      case 'e':
        c = 0x1B;
        return std::nullopt;
      case 'u':
        c = hex_digits(place, 4);
        return std::nullopt;
      case 'x': {
        if (take("{")) {
          c = hex_digits(place, 0);
        } else {
          c = hex_digits(place, 2);
          if (c >= 0x80) refuse(place, "a byte beyond ASCII");
        }
        return std::nullopt;
      }
      default:
        break;
    }
    if (std::ispunct(static_cast<unsigned char>(kind)) == 0 && kind != ' ')
      refuse(place, str_cat("'", text_.substr(place, 2), "'"));
    c = static_cast<unsigned char>(kind);
    return std::nullopt;
  }

  // `digits` hexadecimal digits, or with 0 all up to a closing brace.
  char32_t hex_digits(size_t place, size_t digits) {
    size_t end = digits == 0 ? text_.find('}', at_) : at_ + digits;
    if (end == std::string_view::npos || end > text_.size() || end == at_ || end - at_ > 6)
      refuse(place, "an unfinished character code");
    char32_t value = 0;
    for (; at_ < end; ++at_) {
      const auto digit = static_cast<unsigned char>(text_[at_]);
      if (std::isxdigit(digit) == 0) refuse(place, "an unfinished character code");
      value = value * 16 +
              static_cast<char32_t>(std::isdigit(digit) != 0 ? digit - '0' : std::tolower(digit) - 'a' + 10);
    }
    if (digits == 0) ++at_;
    if (value > unicode::kLast || (value >= 0xD800 && value < 0xE000))
      refuse(place, "a code of no character");
    return value;
  }

  CharSet property(size_t place, bool negated) {
    const size_t end = text_.find('}', at_);
    if (peek() != '{' || end == std::string_view::npos) refuse(place, "a \\p without {}");
    std::string_view name = text_.substr(at_ + 1, end - at_ - 1);
    at_ = end + 1;
    if (name.starts_with("^")) {
      name.remove_prefix(1);
      negated = !negated;
    }
    CharSet set;
    if (!unicode::category(name, set)) refuse(place, str_cat("\\p{", name, "}"));
    return negated ? set.complement() : set;
  }

  CharSet bracket() {
    const size_t place = at_++;
    const bool negated = take("^");
    CharSet set;
    bool any = false;
    while (peek() != ']') {
      if (ended()) refuse(place, "a [ without its ]");
      const size_t here = at_;
      if (peek() == '[') refuse(here, "a class within a class");
      if (text_.substr(at_).starts_with("&&")) refuse(here, "'&&'");
      any = true;
      char32_t first = 0;
      if (const auto subset = class_member(first)) {
        set.add(*subset);
        continue;
      }
      char32_t last = first;
      if (peek() == '-' && at_ + 1 < text_.size() && text_[at_ + 1] != ']') {
        ++at_;
        if (peek() == '[' || class_member(last)) refuse(here, "a range to a class");
        if (last < first) refuse(here, "a range that ends before it begins");
      }
      set.add(first, last);
    }
    ++at_;
    if (!any) refuse(place, "an empty class");
    if (caseless_) refuse(place, "a class under (?i)");
    return negated ? set.complement() : set;
  }

  std::optional<CharSet> class_member(char32_t& c) {
    if (peek() == '\\') return escape(c);
    c = unicode::next_char(text_, at_);
    return std::nullopt;
  }

  std::string_view text_;
  size_t at_ = 0;
  bool caseless_ = false;
  std::string folded_run_;  // the literals before this place, under (?i)
  std::string out_;
};

}  // namespace

std::string rewrite_pattern(std::string_view pattern) {
  return Rewriter(pattern).all();
}

}  // namespace pesc
