// Expected spans as a person writes them: the whole text in pieces, each with whose it is.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "runtime/chat/chat_template.h"

namespace pesc {

enum class Whose { kTemplate, kData, kLearned };
using Pieces = std::vector<std::pair<Whose, std::string>>;

inline Pieces operator+(Pieces a, const Pieces& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}
inline Pieces written(std::string text) {
  return {{Whose::kTemplate, std::move(text)}};
}
inline Pieces data(std::string text) {
  return {{Whose::kData, std::move(text)}};
}
inline Pieces learned(std::string text) {
  return {{Whose::kLearned, std::move(text)}};
}

inline std::vector<TextRange> ranges_of(const Pieces& pieces, Whose whose) {
  std::vector<TextRange> out;
  size_t at = 0;
  for (const auto& [of, text] : pieces) {
    if (of == whose) out.push_back({at, at + text.size()});
    at += text.size();
  }
  return out;
}

inline std::vector<std::string> texts_of(const std::string& text, const std::vector<TextRange>& ranges) {
  std::vector<std::string> out;
  for (const TextRange& range : ranges) out.push_back(text.substr(range.begin, range.end - range.begin));
  return out;
}

inline void expect_pieces(const RenderedChat& chat, const Pieces& pieces) {
  std::string text;
  for (const auto& piece : pieces) text += piece.second;
  EXPECT_EQ(chat.text, text);
  const auto learned_ranges = ranges_of(pieces, Whose::kLearned);
  EXPECT_EQ(texts_of(chat.text, chat.learned), texts_of(text, learned_ranges));
  EXPECT_EQ(chat.learned, learned_ranges);
  const auto data_ranges = ranges_of(pieces, Whose::kData);
  EXPECT_EQ(texts_of(chat.text, chat.data), texts_of(text, data_ranges));
  EXPECT_EQ(chat.data, data_ranges);
}

}  // namespace pesc
