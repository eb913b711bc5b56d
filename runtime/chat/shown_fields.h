// What of a conversation a template shows. Some know no tool calls, or no reasoning, and what they leave out is not learned; some
// leave out a system text, or messages of a role that they do not know. The names of these fields are in conversation_values.cc,
// which has the function.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace pesc {

struct Conversation;  // runtime/chat/messages.h
namespace jinja {
struct Text;     // runtime/chat/jinja/value.h
struct Stretch;  // runtime/chat/jinja/interpreter.h
}  // namespace jinja

// Of the messages of a conversation, or of many.
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
  Count system;      // messages of the system or a developer; appears: something of their content
  Count results;     // messages of tools
  // Of one conversation: the first message of the user, or of a role that is none of these, that does not appear. -1: all do.
  int64_t unshown_question = -1;
  // All other fields that a template may read, "tools" and "messages[].name": in how many rows they say
  // something, and of these, in how many the template reads them. Of many different ones the first.
  std::map<std::string, Count> others;
  void add(const ShownFields& other) {
    reasoning.add(other.reasoning);
    tool_calls.add(other.tool_calls);
    system.add(other.system);
    results.add(other.results);
    constexpr size_t kMost = 32;
    for (const auto& [name, count] : other.others) {
      if (others.size() < kMost || others.contains(name)) others[name].add(count);
    }
  }
};

// Of the conversation that `text`, with its stretches, was rendered from.
[[nodiscard]] ShownFields shown_fields(const Conversation& conversation, const jinja::Text& text,
                                       const std::vector<jinja::Stretch>& stretches);

}  // namespace pesc
