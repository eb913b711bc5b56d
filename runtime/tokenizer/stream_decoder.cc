#include "runtime/tokenizer/stream_decoder.h"

#include <algorithm>
#include <string_view>

namespace pesc {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace

// A character that lacks bytes decodes to one U+FFFD for each byte that is there, three at most; so the last
// three U+FFFD may still change and all before them will not.
std::string StreamDecoder::push(int32_t id) {
  window_.push_back(id);
  const std::string text = tokenizer_.decode(window_);
  size_t settled = text.size();
  for (int held = 0; held < 3 && std::string_view(text).substr(0, settled).ends_with(kReplacement); ++held) {
    settled -= kReplacement.size();
  }
  if (settled <= printed_) return {};
  std::string out = text.substr(printed_, settled - printed_);
  printed_ = settled;
  shorten_window(text.size() - settled);
  return out;
}

std::string StreamDecoder::finish() {
  const std::string text = tokenizer_.decode(window_);
  std::string out = text.substr(std::min(printed_, text.size()));
  window_.clear();
  printed_ = 0;
  return out;
}

// Keeps the last tokens as context, because decoding strips the space mark at the start of a text: a token
// alone would lose the space before it. The context has text of its own, so that the mark it loses is not the
// next token's. What is held back comes from the last three tokens and so is in it.
void StreamDecoder::shorten_window(size_t held) {
  constexpr size_t kLongest = 64;
  constexpr size_t kKept = 16;
  if (window_.size() < kLongest) return;
  const std::vector<int32_t> kept(window_.end() - kKept, window_.end());
  const size_t text = tokenizer_.decode(kept).size();
  if (text <= held) return;
  window_ = kept;
  printed_ = text - held;
}

}  // namespace pesc
