// The names of fields and enum values that an experiment does not have but a reader may expect: those of an
// older pesc, of Hugging Face, PEFT, TRL, Megatron and DeepSpeed. They are not accepted; the error says the
// right name and, where the meaning differs, how to convert the value.
#pragma once

#include <string>
#include <string_view>

namespace pesc {

// The answer to a field called `name` in a message of type `message` ("Train"): "the name is
// train.max_steps", "leave it out: ...". A '-' in the name counts as '_'. Empty: the name is not known.
[[nodiscard]] std::string field_alias_answer(std::string_view message, std::string_view name);

// The same for a value of the enum field `field`: "the value is SELECTIVE". Upper and lower case count as the
// same.
[[nodiscard]] std::string value_alias_answer(std::string_view field, std::string_view value);

// Whether a pesc with the field names before those of Hugging Face wrote a field called `name` in a message
// of type `message`; the answer is today's name, else empty. A checkpoint that has such a field cannot be
// loaded.
[[nodiscard]] std::string_view name_since_renaming(std::string_view message, std::string_view name);

}  // namespace pesc
