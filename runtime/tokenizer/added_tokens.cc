#include "runtime/tokenizer/added_tokens.h"

#include <algorithm>

#include "runtime/tokenizer/unicode.h"

namespace pesc {
namespace {

bool ends_with_word(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && unicode::continues(text[at])) --at;
  return unicode::word().contains(unicode::next_char(text, at));
}

bool starts_with_word(std::string_view text) {
  size_t at = 0;
  return unicode::word().contains(unicode::next_char(text, at));
}

// Where the white space that ends the text begins.
size_t space_at_end(std::string_view text) {
  size_t begin = text.size();
  while (begin > 0) {
    size_t at = begin - 1;
    while (at > 0 && unicode::continues(text[at])) --at;
    size_t behind = at;
    if (!unicode::token_space().contains(unicode::next_char(text, behind))) break;
    begin = at;
  }
  return begin;
}

size_t space_at_start(std::string_view text) {
  size_t end = 0;
  for (size_t at = 0; at < text.size(); end = at) {
    if (!unicode::token_space().contains(unicode::next_char(text, at))) break;
  }
  return end;
}

}  // namespace

void AddedTokenFinder::build(const std::vector<AddedToken>& tokens, bool normalized) {
  nodes_.assign(1, {});
  for (const AddedToken& token : tokens) {
    if (token.normalized != normalized || token.matched.empty()) continue;
    uint32_t node = 0;
    for (const char c : token.matched) {
      const auto byte = static_cast<unsigned char>(c);
      auto& next = nodes_[node].next;
      const auto at = std::ranges::lower_bound(next, byte, {}, &std::pair<unsigned char, uint32_t>::first);
      if (at != next.end() && at->first == byte) {
        node = at->second;
      } else {
        const auto created = static_cast<uint32_t>(nodes_.size());
        next.insert(at, {byte, created});
        nodes_.emplace_back();
        node = created;
      }
    }
    if (nodes_[node].token >= 0) continue;  // two contents that the normalizer makes one
    nodes_[node].token = static_cast<int32_t>(tokens_.size());
    tokens_.push_back(token);
    begins_[static_cast<unsigned char>(token.matched[0])] = true;
  }
}

bool AddedTokenFinder::allowed(const AddedToken& token, const Piece& piece, size_t begin, size_t end,
                               const EncodeOptions& options) const {
  if (!token.special) return true;
  if (options.added_tokens != AddedTokens::kAll) return false;
  if (options.plain.empty()) return true;
  const TextRange range = piece.source_range(begin, end);
  const auto after = std::ranges::upper_bound(options.plain, range.begin, {}, &TextRange::end);
  return after == options.plain.end() || after->begin >= range.end;
}

int32_t AddedTokenFinder::longest(const Piece& piece, size_t begin, const EncodeOptions& options,
                                  size_t& end) const {
  int32_t found = -1;
  uint32_t node = 0;
  for (size_t at = begin; at < piece.text.size(); ++at) {
    const auto& next = nodes_[node].next;
    const auto byte = static_cast<unsigned char>(piece.text[at]);
    const auto step = std::ranges::lower_bound(next, byte, {}, &std::pair<unsigned char, uint32_t>::first);
    if (step == next.end() || step->first != byte) break;
    node = step->second;
    const int32_t token = nodes_[node].token;
    if (token >= 0 && allowed(tokens_[static_cast<size_t>(token)], piece, begin, at + 1, options)) {
      found = token;
      end = at + 1;
    }
  }
  return found;
}

void AddedTokenFinder::cut(const Piece& piece, const EncodeOptions& options,
                           const std::function<void(const Piece&, int32_t)>& part) const {
  const std::string_view text = piece.text;
  size_t done = 0;
  size_t run_begin = 1,
         run_end = 0;  // the white space that was looked through last, for a run of such tokens
  if (!tokens_.empty() && options.added_tokens != AddedTokens::kNone) {
    for (size_t at = 0; at < text.size();) {
      if (!begins_[static_cast<unsigned char>(text[at])]) {
        ++at;
        continue;
      }
      size_t end = 0;
      const int32_t found = longest(piece, at, options, end);
      if (found < 0) {
        ++at;
        continue;
      }
      const AddedToken& token = tokens_[static_cast<size_t>(found)];
      size_t begin = at;
      at = end;  // the search goes on here whatever becomes of the match
      if (token.single_word) {
        const bool word_before = begin > 0 && ends_with_word(text.substr(0, begin));
        const bool word_behind = end < text.size() && starts_with_word(text.substr(end));
        if (word_before || word_behind) continue;
      }
      if (token.lstrip) begin = done + (begin > done ? space_at_end(text.substr(done, begin - done)) : 0);
      if (token.rstrip) {
        if (end < run_begin || end > run_end) {
          run_begin = end;
          run_end = end + space_at_start(text.substr(end));
        }
        end = run_end;
      }
      if (done < begin) part(piece.cut(done, begin), -1);
      // The token before may have taken all of its white space: then it gives nothing, as in the library.
      if (begin >= end) continue;
      part(piece.cut(begin, end), token.id);
      done = end;
    }
  }
  if (done < text.size()) part(piece.cut(done, text.size()), -1);
}

}  // namespace pesc
