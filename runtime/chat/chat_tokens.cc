#include "runtime/chat/chat_tokens.h"

#include <algorithm>
#include <utility>

namespace pesc {

ChatTokens tokens_of(const Tokenizer& tokenizer, const RenderedChat& chat) {
  EncodeOptions options;
  options.added_tokens = AddedTokens::kAll;
  options.plain = chat.data;
  Encoding encoding = tokenizer.encode_with_ranges(chat.text, options);
  ChatTokens out;
  out.learned = overlapping_tokens(encoding.ranges, chat.learned);
  out.ids = std::move(encoding.ids);
  return out;
}

std::vector<TokenRange> overlapping_tokens(std::span<const TextRange> tokens,
                                           std::span<const TextRange> texts) {
  std::vector<TokenRange> out;
  size_t token = 0;
  for (const TextRange& text : texts) {
    // A token may overlap two ranges of text: the last one of the range before is looked at again.
    while (token < tokens.size() && tokens[token].end <= text.begin) ++token;
    size_t end = token;
    size_t last = token;
    for (; end < tokens.size() && tokens[end].begin < text.end; ++end) {
      if (tokens[end].end > text.begin) last = end + 1;  // tokens of no text, between others, belong to them
    }
    if (last == token) continue;
    if (!out.empty() && token <= out.back().end) {
      out.back().end = std::max(out.back().end, last);
    } else {
      out.push_back({token, last});
    }
    token = last - 1;
  }
  return out;
}

}  // namespace pesc
