// A conversation as values of a template, with the origin of every text.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "runtime/chat/jinja/interpreter.h"
#include "runtime/chat/jinja/value.h"
#include "runtime/chat/messages.h"
#include "runtime/chat/shown_fields.h"

namespace pesc {

// JSON as a value; all text in it, keys included, has the origin. Throws jinja::Failure for numbers beyond 64
// bits.
[[nodiscard]] jinja::Value value_of(jinja::Heap& heap, const nlohmann::ordered_json& json,
                                    jinja::Origin origin);

// The list of messages, as apply_chat_template hands it to the template: without fields that are null, with
// what the assistant thought under each of its names (reasoning_content, thinking). What an assistant's
// message holds comes from the assistant, but its role, name and ids; what others hold is data.
[[nodiscard]] jinja::Value messages_value(jinja::Heap& heap, const nlohmann::ordered_json& messages);

// The number of the first message whose content is a list of parts that `text`, rendered of these messages, shows as
// Python prints lists: the template has no place for parts. -1: there is none.
[[nodiscard]] int64_t message_with_printed_parts(const nlohmann::ordered_json& messages,
                                                 std::string_view text);

// Which fields of the messages, and whether the tools, were read while `in` ran; `messages` is what
// messages_value gave. The role, the content, and what shown_fields() looks for are left out.
[[nodiscard]] std::map<std::string, ShownFields::Count> read_fields(const jinja::Interpreter& in,
                                                                    const jinja::Value& messages,
                                                                    const Conversation& conversation);

}  // namespace pesc
