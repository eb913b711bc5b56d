// From a rendered text whose stretches know their origin to what of it is learned. See chat_template.h for
// the rule.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "runtime/chat/jinja/interpreter.h"
#include "runtime/chat/jinja/value.h"
#include "runtime/tokenizer/tokenizer.h"

namespace pesc {

struct SpanRules {
  const std::vector<std::string>& control;  // texts of the control tokens
  std::string_view prompt;                  // what stands before an answer and is not the model's
  bool marked = false;                      // the template has {% generation %} blocks
};

struct LearnedSpans {
  std::vector<TextRange> ranges;
  // The number of the first message whose end of turn is not found (0 where a marked span belongs to none);
  // -1: none.
  int64_t without_end = -1;
};

// `learned[i]`: whether message i is to be learned.
[[nodiscard]] LearnedSpans learned_spans(const jinja::Text& text,
                                         const std::vector<jinja::Stretch>& stretches,
                                         const std::vector<bool>& learned, const SpanRules& rules);

// What comes from data (messages of others than the assistant, and tools).
[[nodiscard]] std::vector<TextRange> data_ranges(const jinja::Text& text);

// The control token that begins at `at`, the longest; empty when there is none.
[[nodiscard]] std::string_view control_at(std::string_view text, size_t at,
                                          const std::vector<std::string>& control);
// The control token that ends at `end`; white space before `end` is passed over.
[[nodiscard]] std::string_view control_before(std::string_view text, size_t end,
                                              const std::vector<std::string>& control);

}  // namespace pesc
