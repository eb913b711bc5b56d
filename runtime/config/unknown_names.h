// What an error says of a name that an experiment does not have: the right one, or the nearest.
#pragma once

#include <google/protobuf/message.h>

#include <string>
#include <string_view>
#include <vector>

namespace pesc {

// "no field 'learning_rte' in Train; did you mean 'learning_rate'?", or the right name of one that an older
// pesc or another program calls so (runtime/config/field_aliases.h), or where in an experiment a field of
// this name is, or, where no name is near, all fields of the message.
[[nodiscard]] std::string unknown_field(const std::string& name, const google::protobuf::Descriptor& message);

// "'COSIN' is not a value of lr_scheduler_type; did you mean 'COSINE'? It is one of ...", or the right value.
[[nodiscard]] std::string unknown_value(const std::string& value, const std::string& field,
                                        const std::vector<std::string>& values);

// The same for a linear of a layer, in lora.target_modules: "is 'q_prj', which is no linear of a layer; ...".
[[nodiscard]] std::string unknown_linear(const std::string& name, const std::vector<std::string>& linears);

// Whether an earlier version had this field and no other replaces it: a recorded configuration may have it.
[[nodiscard]] bool is_gone_field(std::string_view message, std::string_view name);

[[nodiscard]] std::vector<std::string> field_names(const google::protobuf::Descriptor& message);

// "a, b, c"
[[nodiscard]] std::string joined(const std::vector<std::string>& names);

// The candidate with the smallest edit distance to `name`; the first of equals.
[[nodiscard]] std::string nearest_name(const std::string& name, const std::vector<std::string>& candidates);

}  // namespace pesc
