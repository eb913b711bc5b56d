// What a tokenizer.json splits or replaces: a string, or a regular expression (PCRE2, compiled to machine
// code).
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "runtime/tokenizer/tokenizer.h"

namespace pesc {

class Pattern {
 public:
  // Throws DataError for an empty string, and for an expression that is not supported or that PCRE2 refuses.
  [[nodiscard]] static Pattern literal(std::string text);
  [[nodiscard]] static Pattern regex(const std::string& expression);
  Pattern(Pattern&&) noexcept;
  Pattern& operator=(Pattern&&) noexcept;
  ~Pattern();

  [[nodiscard]] bool can_match_nothing() const;

  // The matches in a text, from left to right. An empty match counts where no match ends.
  class Matches {
   public:
    Matches(const Pattern& pattern, std::string_view text) : pattern_(pattern), text_(text) {}
    // Throws DataError where the search takes too long or too much memory.
    [[nodiscard]] bool next(TextRange& match);

   private:
    [[nodiscard]] bool search(TextRange& match);
    void check_time();
    const Pattern& pattern_;
    std::string_view text_;
    size_t from_ = 0;
    std::optional<size_t> last_end_;
    int searches_ = 0;
    double started_ = 0;            // of the day
    double processor_started_ = 0;  // 0: not looked at yet
  };

 private:
  struct Compiled;
  explicit Pattern(std::unique_ptr<Compiled> compiled);
  std::unique_ptr<Compiled> compiled_;
};

}  // namespace pesc
