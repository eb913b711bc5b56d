#include "runtime/tokenizer/stream_decoder.h"

#include <algorithm>
#include <string_view>

namespace pesc {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace

// A character that lacks bytes decodes to one U+FFFD for each byte that is there, three at most; so the last
// three U+FFFD may still change. All before them will not, except where a decoder takes a run of byte tokens
// as a whole (ByteFallback): there one incomplete character makes all of the run U+FFFD, and what was printed
// of it comes back when the character is complete.
std::string StreamDecoder::push(int32_t id) {
  window_.push_back(id);
  const std::string text = tokenizer_.decode(window_);
  size_t settled = text.size();
  for (int held = 0; held < 3 && std::string_view(text).substr(0, settled).ends_with(kReplacement); ++held) {
    settled -= kReplacement.size();
  }
  size_t printed = printed_.size();
  if (settled <= printed) return {};
  if (!text.starts_with(printed_)) {
    if (text.ends_with(kReplacement) && window_.size() < kLongestWindow) return {};
    while (printed < settled && (static_cast<unsigned char>(text[printed]) & 0xC0U) == 0x80U) ++printed;
  }
  std::string out = text.substr(printed, settled - printed);
  printed_ = text.substr(0, settled);
  shorten_window(text);
  return out;
}

std::string StreamDecoder::finish() {
  const std::string text = tokenizer_.decode(window_);
  std::string out = text.substr(std::min(printed_.size(), text.size()));
  window_.clear();
  printed_.clear();
  return out;
}

// Keeps the last tokens as context, because decoding strips the space mark at the start of a text: a token
// alone would lose the space before it. The context has text of its own, so that the mark it loses is not the
// next token's, and it does not begin within a character. What is held back comes from the last three tokens
// and so is in it.
void StreamDecoder::shorten_window(const std::string& text) {
  constexpr size_t kLong = 64;
  constexpr size_t kLeastKept = 16;
  const size_t held = text.size() - printed_.size();
  if (window_.size() < kLong) return;
  for (size_t kept = kLeastKept; kept < window_.size(); ++kept) {
    const std::vector<int32_t> context(window_.end() - static_cast<std::ptrdiff_t>(kept), window_.end());
    std::string its_text = tokenizer_.decode(context);
    if (its_text.size() <= held || !text.ends_with(its_text)) {
      if (window_.size() < kLongestWindow) continue;
      if (its_text.size() <= held) continue;
    }
    window_ = context;
    its_text.resize(its_text.size() - held);
    printed_ = std::move(its_text);
    return;
  }
}

}  // namespace pesc
