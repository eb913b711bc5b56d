#include "runtime/text/json_mistake.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdio>

#include "ops/core/check.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

std::string cited(std::string_view text) {
  return in_quotes(text, kCited);
}

// What a reader of JSON has seen of the text before some byte.
struct Context {
  bool in_string = false;
  size_t string_start = 0;
  int64_t depth = 0;
  bool closed = false;   // the first bracket's partner stands before the byte
  char previous = '\0';  // the last byte that is no space, outside strings
};

Context context_before(std::string_view text, size_t end) {
  Context c;
  bool escaped = false;
  for (size_t i = 0; i < end; ++i) {
    const char byte = text[i];
    if (c.in_string) {
      if (!escaped && byte == '"') c.in_string = false;
      escaped = !escaped && byte == '\\';
      continue;
    }
    if (std::isspace(static_cast<unsigned char>(byte)) != 0) continue;
    c.previous = byte;
    if (byte == '"') {
      c.in_string = true;
      c.string_start = i;
      escaped = false;
    } else if (byte == '{' || byte == '[') {
      ++c.depth;
    } else if ((byte == '}' || byte == ']') && --c.depth == 0) {
      c.closed = true;
      return c;
    }
  }
  return c;
}

bool of_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '-' || c == '+' || c == '.';
}

// The word or number around `at`, its sign included; empty when there is none.
std::string_view word_at(std::string_view text, size_t at) {
  if (at >= text.size() || !of_word(text[at])) return {};
  size_t begin = at;
  while (begin > 0 && of_word(text[begin - 1])) --begin;
  size_t end = at;
  while (end < text.size() && of_word(text[end])) ++end;
  return text.substr(begin, end - begin);
}

std::string about_word(std::string_view word, JsonText what) {
  for (const std::string_view number :
       {"NaN", "nan", "Infinity", "-Infinity", "inf", "-inf", "Inf", "-Inf"}) {
    if (word == number) return str_cat("'", word, "' is no JSON value; write null or leave it out");
  }
  for (const std::string_view python : {"None", "True", "False"}) {
    if (word == python)
      return str_cat("'", word, "' is Python's notation; write the ",
                     what == JsonText::kRow ? "rows" : "file", " with json.dumps, which gives ",
                     word == "None"   ? "null"
                     : word == "True" ? "true"
                                      : "false");
  }
  return {};
}

std::string about_bare_byte(char c) {
  char code[8];
  std::snprintf(code, sizeof code, "U+%04X", static_cast<unsigned>(static_cast<unsigned char>(c)));
  const char* name = c == '\n' ? "a line break" : c == '\t' ? "a tab" : "a control character";
  const char* written = c == '\n' ? "\\n" : c == '\t' ? "\\t" : "as \\u and four digits";
  return str_cat(name, " (", code, ") stands bare in a string; it is written ", written);
}

std::string about_end(std::string_view text, const Context& c, JsonText what) {
  const bool row = what == JsonText::kRow;
  if (text.find_first_not_of(" \t\r\n") == std::string_view::npos) return "there is no text";
  if (c.in_string) {
    return str_cat("the ", row ? "row" : "file", " ends within the string that begins at byte ",
                   c.string_start + 1, ", ", cited(text.substr(c.string_start)),
                   ": its closing quote is missing", row ? "" : "; it was cut: copy or download it again");
  }
  if (!row) return "the file ends before its object does; it was cut: copy or download it again";
  return "the line ends before its object does. A row is one object on one line; objects over several lines "
         "are read as elements of one JSON array, [{...}, {...}], and a list of rows inside an object is to "
         "be taken out of it";
}

std::string about_rest(std::string_view text, size_t at, JsonText what) {
  const char c = text[at];
  if (what == JsonText::kFile) return str_cat(cited(text.substr(at)), " stands behind the object");
  if (c == ',')
    return "',' (a comma) stands behind the object; lines of JSON have none between them: take it away, or "
           "write the whole file as one JSON array, [{...}, {...}]";
  const size_t closing = text.substr(0, at).find_last_not_of(" \t\r\n");
  if (text.substr(0, at).find('\r', closing == std::string_view::npos ? 0 : closing) !=
      std::string_view::npos)
    return str_cat(
        cited(text.substr(at)),
        " stands behind the object on the same line, and a CR (U+000D) between them: the lines end "
        "with CR alone; convert the file: tr '\\r' '\\n' < FILE > CONVERTED");
  if (c == '{' || c == '[')
    return str_cat(cited(text.substr(at)),
                   " stands behind the object on the same line: two objects on one line; "
                   "give each a line of its own");
  return str_cat(cited(text.substr(at)), " stands behind the object");
}

}  // namespace

std::string json_mistake(std::string_view text, size_t position, std::string_view reason, JsonText what) {
  // Behind its own words the parser quotes the text.
  const std::string_view own = reason.substr(0, reason.find("; last read"));
  const auto says = [own](std::string_view words) { return own.find(words) != std::string_view::npos; };
  if (position == 0 || position > text.size()) {
    const Context c = context_before(text, text.size());
    if (!c.closed) return about_end(text, c, what);
  }
  const size_t at = std::min(std::max<size_t>(position, 1), std::max<size_t>(text.size(), 1)) - 1;
  const Context c = context_before(text, at);
  if (c.closed) {
    // The parser may have read on into what stands there; the message shows it from its beginning.
    size_t rest = at;
    while (rest > 0 && of_word(text[rest]) && of_word(text[rest - 1])) --rest;
    return about_rest(text, rest, what);
  }
  if (says("surrogate")) {
    const size_t escape = text.substr(0, at + 1).rfind("\\u");
    return str_cat("a lone surrogate, ",
                   cited(text.substr(escape == std::string_view::npos ? at : escape, 6)),
                   ": half of a character; the text was cut inside it");
  }
  if (says("UTF-8"))
    return str_cat(cited(text.substr(at)), " is no UTF-8, which JSON is written in; save the text as UTF-8");
  if (c.in_string) {
    if (static_cast<unsigned char>(text[at]) < 0x20) return about_bare_byte(text[at]);
    const size_t escape = text.substr(0, at + 1).rfind('\\');
    if (escape != std::string_view::npos && at - escape < 6) {
      return str_cat(cited(text.substr(escape, 6)),
                     " is no escape of JSON; a backslash itself is written \\\\");
    }
  }
  if (says("number overflow")) return str_cat(cited(word_at(text, at)), " is too large for a number");
  if (const std::string about = about_word(word_at(text, at), what); !about.empty()) return about;
  const std::string_view rest = text.substr(at);
  if (rest.front() == '\'')
    return str_cat(cited(rest),
                   ": names and texts stand in double quotes, not in single ones (Python's "
                   "notation; json.dumps writes JSON)");
  for (const std::string_view quote : {"\xE2\x80\x9C", "\xE2\x80\x9D", "\xE2\x80\x98", "\xE2\x80\x99"}) {
    if (rest.starts_with(quote.substr(0, 2)))
      return "typographic quotes stand where \" belongs; names and texts stand in plain double quotes";
  }
  if ((rest.front() == '}' || rest.front() == ']') && c.previous == ',')
    return str_cat("a comma stands before the closing '", rest.substr(0, 1), "'");
  if (rest.front() == '/' || rest.front() == '#') return str_cat(cited(rest), ": JSON has no comments");
  if (c.depth == 0 && what == JsonText::kFile)
    return str_cat("the file begins with ", cited(text),
                   "; a JSON file begins with {: copy or download it again");
  if (c.depth == 0) return str_cat("the row begins with ", cited(text), "; a row is one JSON object, {...}");
  if (c.previous == '{' || c.previous == ',') {
    if (of_word(rest.front())) return str_cat(cited(rest), ": a name stands in double quotes");
  }
  if (const size_t expected = reason.rfind("expected "); expected != std::string_view::npos)
    return str_cat(cited(rest), " stands where ", reason.substr(expected + 9), " is expected");
  return str_cat(cited(rest), " cannot stand here");
}

}  // namespace pesc
