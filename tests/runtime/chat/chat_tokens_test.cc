// Spans of text as ranges of tokens.
#include "runtime/chat/chat_tokens.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace pesc {
namespace {

// Tokens are words with the space before them; "<end>" is a special token, found where the options let it be.
class WordTokenizer : public Tokenizer {
 public:
  [[nodiscard]] std::vector<int32_t> encode(std::string_view text) const override {
    return encode_with_ranges(text, {}).ids;
  }
  [[nodiscard]] Encoding encode_with_ranges(std::string_view text,
                                            const EncodeOptions& options) const override {
    EXPECT_FALSE(options.post_processor);
    Encoding out;
    for (size_t at = 0; at < text.size();) {
      size_t end = at + 1;
      const bool special = text.substr(at).starts_with("<end>") &&
                           options.added_tokens == AddedTokens::kAll && !in_plain(options, at, at + 5);
      if (special) {
        end = at + 5;
      } else {
        while (end < text.size() && text[end] != ' ' && text[end] != '<') ++end;
      }
      out.ids.push_back(special ? 1000 : static_cast<int32_t>(end - at));
      out.ranges.push_back({at, end});
      at = end;
    }
    return out;
  }
  [[nodiscard]] std::string decode(std::span<const int32_t>) const override { return {}; }
  [[nodiscard]] std::string decode_all(std::span<const int32_t>) const override { return {}; }
  [[nodiscard]] int32_t vocab_size() const override { return 1001; }
  [[nodiscard]] int32_t bos_id() const override { return -1; }
  [[nodiscard]] int32_t eos_id() const override { return 1000; }

 private:
  static bool in_plain(const EncodeOptions& options, size_t begin, size_t end) {
    for (const TextRange& range : options.plain) {
      if (begin < range.end && end > range.begin) return true;
    }
    return false;
  }
};

using Texts = std::vector<TextRange>;
using Tokens = std::vector<TokenRange>;

TEST(ChatTokens, ATokenIsLearnedWhenItOverlaps) {
  const Texts tokens = {{0, 3}, {3, 5}, {5, 9}, {9, 12}};
  EXPECT_EQ(overlapping_tokens(tokens, Texts{{3, 9}}), (Tokens{{1, 3}}));
  EXPECT_EQ(overlapping_tokens(tokens, Texts{{4, 6}}), (Tokens{{1, 3}}));
  EXPECT_EQ(overlapping_tokens(tokens, Texts{{0, 1}, {11, 12}}), (Tokens{{0, 1}, {3, 4}}));
  EXPECT_EQ(overlapping_tokens(tokens, Texts{{6, 7}, {8, 10}}), (Tokens{{2, 4}}));  // both in token 2
  EXPECT_EQ(overlapping_tokens(tokens, Texts{{12, 15}}), Tokens());
  EXPECT_EQ(overlapping_tokens(tokens, Texts{}), Tokens());
  EXPECT_EQ(overlapping_tokens(Texts{}, Texts{{0, 5}}), Tokens());
  EXPECT_EQ(overlapping_tokens(tokens, Texts{{0, 12}}), (Tokens{{0, 4}}));
}

TEST(ChatTokens, SeveralTokensOfOneCharacterAndTokensOfNone) {
  // A character of three bytes that is cut into three tokens, each standing for all of it; then one that
  // stands for nothing.
  const Texts tokens = {{0, 1}, {1, 4}, {1, 4}, {1, 4}, {4, 4}, {4, 5}};
  EXPECT_EQ(overlapping_tokens(tokens, Texts{{1, 4}}), (Tokens{{1, 4}}));
  EXPECT_EQ(overlapping_tokens(tokens, Texts{{0, 1}}), (Tokens{{0, 1}}));
  EXPECT_EQ(overlapping_tokens(tokens, Texts{{1, 5}}), (Tokens{{1, 6}}));
  EXPECT_EQ(overlapping_tokens(tokens, Texts{{4, 5}}), (Tokens{{5, 6}}));
}

TEST(ChatTokens, SpecialTokensAreFoundInTheAnswerAndNotInTheQuestion) {
  const ChatTemplate made(
      {"t", "{% for m in messages %}{{ m.role }} {{ m.content }}<end>{% endfor %}", {{}, {"<end>"}}}, {});
  const Conversation conversation =
      conversation_of(nlohmann::ordered_json{{"prompt", "a<end> b"}, {"completion", "c <end>d"}}, "row");
  const RenderedChat chat = made.render(conversation);
  ASSERT_EQ(chat.text, "user a<end> b<end>assistant c <end>d<end>");
  const ChatTokens tokens = tokens_of(WordTokenizer(), chat);
  // "user" " a" "<end>" " b" <end> "assistant" " c" " " <end> "d" <end>
  EXPECT_EQ(tokens.ids, (std::vector<int32_t>{4, 2, 5, 2, 1000, 9, 2, 1, 1000, 1, 1000}));
  EXPECT_EQ(tokens.learned, (Tokens{{6, 11}}));
}

}  // namespace
}  // namespace pesc
