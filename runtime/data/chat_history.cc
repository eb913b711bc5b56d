#include "runtime/data/chat_history.h"

#include <utility>

#include "ops/core/check.h"

namespace pesc {

ChatHistory::ChatHistory(const RowEncoder& encoder, std::string system, ChatLimits limits)
    : encoder_(encoder), limits_(limits) {
  PESC_CHECK(limits.history > 0 && limits.history <= limits.prompt, "a history of ", limits.history,
             " tokens, prompts of ", limits.prompt);
  row_.system = std::move(system);
}

ChatPrompt ChatHistory::ask(const std::string& question) {
  Row asked = row_;
  asked.turns.push_back({question, ""});
  ChatPrompt out;
  while (true) {
    out.tokens = encoder_.encode_prompt(asked, limits_.prompt);
    const int64_t size = std::ssize(out.tokens);
    const bool alone = asked.turns.size() == 1;
    if (size <= (alone ? limits_.prompt : limits_.history)) break;
    if (alone) {
      throw DataError(str_cat("the message has too many tokens: with the template around it more than ",
                              limits_.prompt, ", the most that this chat takes"));
    }
    asked.turns.erase(asked.turns.begin());
    ++out.dropped;
  }
  row_ = std::move(asked);
  return out;
}

void ChatHistory::answer(std::string text) {
  PESC_CHECK(!row_.turns.empty(), "an answer without a question");
  row_.turns.back().answer = std::move(text);
}

}  // namespace pesc
