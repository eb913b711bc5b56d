// A conversation that goes on, question after question, as prompts of the run's template: what `pesc generate
// --chat` asks the model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/data/row_encoder.h"
#include "runtime/data/rows.h"

namespace pesc {

struct ChatLimits {
  int64_t prompt = 0;   // tokens of the longest prompt that the model takes
  int64_t history = 0;  // tokens of the longest prompt that is made of several turns; at most `prompt`
};

struct ChatPrompt {
  std::vector<int32_t> tokens;
  int64_t dropped = 0;  // the oldest turns, which were left out to make room and are forgotten
};

class ChatHistory {
 public:
  // `system` may be empty. The encoder must live as long as the history.
  ChatHistory(const RowEncoder& encoder, std::string system, ChatLimits limits);

  // The prompt for a question behind all turns so far, the same tokens as of a training row with these texts.
  // Throws DataError, with the history as it was, for a question that has too many tokens by itself, and for
  // a conversation that the template refuses (TemplateError).
  [[nodiscard]] ChatPrompt ask(const std::string& question);
  // What the model answered to the last question. REQUIRES: one was asked.
  void answer(std::string text);
  // Forgets all turns. The system text stays.
  void reset() { row_.turns.clear(); }
  [[nodiscard]] const Row& row() const { return row_; }

 private:
  const RowEncoder& encoder_;
  ChatLimits limits_;
  Row row_;
};

}  // namespace pesc
