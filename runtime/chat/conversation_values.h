// A conversation as values of a template, with the origin of every text.
#pragma once

#include <nlohmann/json.hpp>

#include "runtime/chat/jinja/value.h"
#include "runtime/chat/messages.h"

namespace pesc {

// JSON as a value; all text in it, keys included, has the origin. Throws jinja::Failure for numbers beyond 64
// bits.
[[nodiscard]] jinja::Value value_of(jinja::Heap& heap, const nlohmann::ordered_json& json,
                                    jinja::Origin origin);

// The list of messages, as apply_chat_template hands it to the template: without fields that are null, with
// what the assistant thought under each of its names (reasoning_content, thinking). What an assistant's
// message holds comes from the assistant, but its role, name and ids; what others hold is data.
[[nodiscard]] jinja::Value messages_value(jinja::Heap& heap, const nlohmann::ordered_json& messages);

}  // namespace pesc
