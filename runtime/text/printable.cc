#include "runtime/text/printable.h"

#include "ops/core/check.h"
#include "runtime/text/utf8.h"

namespace pesc {
namespace {

// C0 controls and DEL; the C1 controls, U+0080 to U+009F, are C2 80 to C2 9F.
bool is_control_character(std::string_view character) {
  const auto c = static_cast<unsigned char>(character[0]);
  if (c < 0x20 || c == 0x7F) return true;
  return c == 0xC2 && character.size() == 2 && static_cast<unsigned char>(character[1]) < 0xA0;
}

void append_escaped(std::string_view bytes, std::string& out) {
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    out += "\\x";
    out += "0123456789ABCDEF"[byte >> 4];
    out += "0123456789ABCDEF"[byte & 15];
  }
}

}  // namespace

bool is_printable(std::string_view text) {
  while (!text.empty()) {
    const size_t bytes = first_character(text);
    if (bytes == 0 || is_control_character(text.substr(0, bytes))) return false;
    text.remove_prefix(bytes);
  }
  return true;
}

std::string printable(std::string_view text, size_t most, Keep keep) {
  std::string out;
  while (!text.empty() && out.size() <= most) {
    const size_t bytes = first_character(text);
    const std::string_view character = text.substr(0, bytes == 0 ? 1 : bytes);
    const bool kept = keep == Keep::kLines && (character == "\n" || character == "\t");
    if (kept || (bytes > 0 && !is_control_character(character))) {
      out += character;
    } else {
      append_escaped(character, out);
    }
    text.remove_prefix(character.size());
  }
  if (out.size() <= most) return out;
  out.resize(most);
  out.resize(valid_utf8_prefix(out));  // no character cut in half
  return out + "...";
}

std::string in_quotes(std::string_view text, size_t most) {
  return str_cat("'", printable(text, most), "'");
}

}  // namespace pesc
