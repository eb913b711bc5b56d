#include "runtime/data/unknown_characters.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string_view>
#include <utility>
#include <vector>

#include "ops/core/check.h"
#include "runtime/text/printable.h"
#include "runtime/text/utf8.h"

namespace pesc {
namespace {

bool any_unknown(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  return std::ranges::any_of(ids, [&](int32_t id) { return tokenizer.is_unknown(id); });
}

class UnknownFinder {
 public:
  UnknownFinder(const Tokenizer& tokenizer, int64_t limit) : tokenizer_(tokenizer), limit_(limit) {}

  void look(std::string_view text, const std::string& place) {
    const EncodedStart start = tokenizer_.encode_start(text, limit_);
    if (!any_unknown(tokenizer_, start.ids)) return;
    text = text.substr(0, start.bytes);
    const size_t before = found_.size();
    for (int64_t number = 1; !text.empty(); ++number) {
      const std::string_view character = text.substr(0, std::max<size_t>(first_character(text), 1));
      const auto [known, is_new] = unknown_.try_emplace(std::string(character), false);
      if (is_new) {
        known->second = any_unknown(tokenizer_, tokenizer_.encode(character));
        if (known->second)
          found_.push_back(str_cat("'", printable(character), "' (character ", number, " of ", place, ")"));
      }
      text.remove_prefix(character.size());
    }
    // Known each by itself, and still not as they stand together.
    if (found_.size() == before && found_.empty()) found_.push_back(str_cat("a character of ", place));
  }

  [[nodiscard]] std::string text() const {
    constexpr size_t kMost = 8;
    std::string out;
    for (size_t i = 0; i < std::min(found_.size(), kMost); ++i) out += (i == 0 ? "" : ", ") + found_[i];
    return found_.size() > kMost ? str_cat(out, " and ", found_.size() - kMost, " more") : out;
  }

 private:
  const Tokenizer& tokenizer_;
  int64_t limit_;
  std::map<std::string, bool> unknown_;  // by character
  std::vector<std::string> found_;
};

}  // namespace

std::string unknown_characters(const Tokenizer& tokenizer, const Row& row, int64_t limit) {
  UnknownFinder finder(tokenizer, limit);
  finder.look(row.system, "the system text");
  for (size_t i = 0; i < row.turns.size(); ++i) {
    finder.look(row.turns[i].prompt, row.turns.size() == 1 ? "the prompt" : str_cat("question ", i + 1));
    if (i + 1 < row.turns.size()) finder.look(row.turns[i].answer, str_cat("answer ", i + 1));
  }
  return finder.text();
}

}  // namespace pesc
