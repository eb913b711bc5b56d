// Which fields of the assistant's messages a template shows: some templates know no tool calls, or no
// reasoning, and what they leave out is not learned. The names of these fields are in conversation_values.cc,
// which has the function.
#pragma once

#include <cstdint>
#include <vector>

namespace pesc {

struct Conversation;  // runtime/chat/messages.h
namespace jinja {
struct Text;     // runtime/chat/jinja/value.h
struct Stretch;  // runtime/chat/jinja/interpreter.h
}  // namespace jinja

// Of the assistant's messages of a conversation, or of many.
struct ShownFields {
  struct Count {
    int64_t messages = 0;  // that have the field
    int64_t shown = 0;     // of these, in whose text it appears
    void add(const Count& other) {
      messages += other.messages;
      shown += other.shown;
    }
  };
  Count reasoning;   // "reasoning_content", "thinking" or "reasoning"
  Count tool_calls;  // appears: the name of one of its functions
  void add(const ShownFields& other) {
    reasoning.add(other.reasoning);
    tool_calls.add(other.tool_calls);
  }
};

// Of the conversation that `text`, with its stretches, was rendered from.
[[nodiscard]] ShownFields shown_fields(const Conversation& conversation, const jinja::Text& text,
                                       const std::vector<jinja::Stretch>& stretches);

}  // namespace pesc
