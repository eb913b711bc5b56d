// Where a text can be cut before it is tokenised without changing the tokens before the cut.
//
// No piece reaches across two neighbouring characters that stand side by side in no piece. There the text
// falls into parts that are tokenised independently of each other: no merge of byte-pair encoding joins them,
// and every path of the unigram model goes through that border, so the best path is the best of each part. A
// table that rewrites characters (maps_characters) may join others than pieces do; with one, only a space
// behind a printable ASCII character counts as such a border, which no such table touches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <unordered_set>

#include "runtime/tokenizer/sentencepiece_file.h"

namespace pesc {

class PieceBorders {
 public:
  explicit PieceBorders(const SentencePieceFacts& facts) : facts_(facts) {}
  // A piece that may come from a text: neither control, unknown nor byte.
  void add_piece(std::string_view piece);

  struct Cut {
    size_t bytes = 0;        // of the text, before the cut
    bool at_border = false;  // or its end; otherwise the last tokens before the cut may differ
  };
  // The first border at or behind byte `from` of `text`. Where none stands in the next kLongestSearch bytes
  // (a run of one letter, say), the cut is behind these.
  [[nodiscard]] Cut next(std::string_view text, size_t from) const;
  static constexpr size_t kLongestSearch = size_t{64} << 10;

 private:
  [[nodiscard]] bool border(char32_t before, char32_t after) const;

  SentencePieceFacts facts_;
  std::unordered_set<uint64_t> side_by_side_;
};

}  // namespace pesc
