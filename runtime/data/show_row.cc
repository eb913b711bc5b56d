#include "runtime/data/show_row.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "ops/core/check.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

constexpr const char* kOpen = "\xE2\x9F\xA6";   // U+27E6
constexpr const char* kClose = "\xE2\x9F\xA7";  // U+27E7

// The text of a part follows from the tokens before it too: decoding drops the space that begins a text.
class TextOfParts {
 public:
  TextOfParts(const Tokenizer& tokenizer, std::span<const int32_t> ids) : tokenizer_(tokenizer), ids_(ids) {}

  std::string up_to(size_t end) {
    std::string all = tokenizer_.decode_all(ids_.first(end));
    const auto same = static_cast<size_t>(std::ranges::mismatch(done_, all).in1 - done_.begin());
    std::string part = all.substr(std::min(same, all.size()));
    done_ = std::move(all);
    return without_brackets(printable(part, kUncut, Keep::kLines));
  }

 private:
  // Brackets in a text are written as \u27E6 and \u27E7: none makes it look like a control token.
  static std::string without_brackets(const std::string& text) {
    std::string out;
    for (size_t done = 0;;) {
      const size_t at = text.find(std::string_view(kOpen).substr(0, 2), done);
      if (at == std::string::npos) return out.append(text, done);
      const bool open = text.compare(at, 3, kOpen) == 0;
      const bool close = text.compare(at, 3, kClose) == 0;
      out.append(text, done, at - done).append(open ? "\\u27E6" : close ? "\\u27E7" : text.substr(at, 3));
      done = at + 3;
    }
  }

  const Tokenizer& tokenizer_;
  std::span<const int32_t> ids_;
  std::string done_;
};

// The text of the tokens up to `end`, control tokens among them marked.
std::string with_controls(const Tokenizer& tokenizer, std::span<const int32_t> ids, size_t begin, size_t end,
                          bool colour, TextOfParts& text) {
  std::string out;
  for (size_t i = begin; i < end; ++i) {
    if (!tokenizer.is_control(ids[i])) continue;
    out += text.up_to(i);
    const std::string name = text.up_to(i + 1);
    if (!name.empty()) out += (colour ? "\x1B[7m" : kOpen) + name + (colour ? "\x1B[27m" : kClose);
  }
  return out + text.up_to(end);
}

}  // namespace

std::string shown_row(const Tokenizer& tokenizer, std::span<const int32_t> ids,
                      std::span<const TokenRange> learned, Marks marks) {
  const bool colour = marks == Marks::kColour;
  size_t count = 0;
  for (const TokenRange& range : learned) count += range.end - range.begin;
  std::string out = str_cat(ids.size(), " tokens, ", count, " of them learned:\n");
  TextOfParts text(tokenizer, ids);
  size_t done = 0;
  const auto up_to = [&](size_t end) {
    return with_controls(tokenizer, ids, std::exchange(done, end), end, colour, text);
  };
  for (const TokenRange& range : learned) {
    PESC_CHECK(range.begin < range.end && range.end <= ids.size());
    out += up_to(range.begin);
    out += (colour ? "\x1B[32m" : ">>>") + up_to(range.end) + (colour ? "\x1B[0m" : "<<<");
  }
  return out + up_to(ids.size()) + "\n";
}

}  // namespace pesc
