// Protobuf text with messages a person can act on: file, line, and the nearest valid name for what is
// unknown.
#pragma once

#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>

#include <functional>
#include <string>
#include <vector>

namespace pesc {

// Where each field stands in the text, for messages of later checks.
struct TextLocations {
  google::protobuf::TextFormat::ParseInfoTree tree;
};

// Fills `message` from `text`. Throws UsageError listing every mistake as "where:line:column: ...".
void parse_text(const std::string& text, const std::string& where, google::protobuf::Message& message,
                TextLocations& locations);

// The same for a configuration that a checkpoint recorded, perhaps by an earlier version: fields that are
// gone since then are left out. Throws DataError for one that this version never had.
void parse_recorded_text(const std::string& text, const std::string& where,
                         google::protobuf::Message& message);

// The same for text that did not come from a file: mistakes are listed as "where: ...".
void parse_inline_text(const std::string& text, const std::string& where, google::protobuf::Message& message);

// "no field 'learning_rte' in Train; did you mean 'learning_rate'?"
[[nodiscard]] std::string unknown_field(const std::string& name, const google::protobuf::Descriptor& message);

[[nodiscard]] std::vector<std::string> field_names(const google::protobuf::Descriptor& message);

// "a, b, c"
[[nodiscard]] std::string joined(const std::vector<std::string>& names);

// The candidate with the smallest edit distance to `name`; the first of equals.
[[nodiscard]] std::string nearest_name(const std::string& name, const std::vector<std::string>& candidates);

}  // namespace pesc
