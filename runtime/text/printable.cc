#include "runtime/text/printable.h"

#include "runtime/text/utf8.h"

namespace pesc {
namespace {

constexpr size_t kLongest = 256;

// C0 controls and DEL; the C1 controls, U+0080 to U+009F, are C2 80 to C2 9F.
bool is_control(std::string_view text, size_t at) {
  const auto c = static_cast<unsigned char>(text[at]);
  if (c < 0x20 || c == 0x7F) return true;
  return c == 0xC2 && at + 1 < text.size() && static_cast<unsigned char>(text[at + 1]) < 0xA0;
}

void append_escaped(char c, std::string& out) {
  const auto byte = static_cast<unsigned char>(c);
  out += "\\x";
  out += "0123456789ABCDEF"[byte >> 4];
  out += "0123456789ABCDEF"[byte & 15];
}

}  // namespace

bool is_printable(std::string_view text) {
  if (valid_utf8_prefix(text) != text.size()) return false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (is_control(text, i)) return false;
  }
  return true;
}

std::string made_printable(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const size_t good = valid_utf8_prefix(text);
    for (size_t i = 0; i < good; ++i) {
      // Of a control character of two bytes both are escaped.
      const bool second = i > 0 && is_control(text, i - 1) && static_cast<unsigned char>(text[i - 1]) == 0xC2;
      if (second || is_control(text, i)) {
        append_escaped(text[i], out);
      } else {
        out += text[i];
      }
      if (out.size() > kLongest + 8) break;
    }
    if (out.size() > kLongest) break;
    if (good == text.size()) break;
    append_escaped(text[good], out);
    text.remove_prefix(good + 1);
  }
  if (out.size() <= kLongest) return out;
  out.resize(kLongest);
  out.resize(valid_utf8_prefix(out));  // no character cut in half
  return out + "...";
}

}  // namespace pesc
