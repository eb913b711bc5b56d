// Protobuf text with messages a person can act on: file, line, and the nearest valid name for what is
// unknown.
#pragma once

#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>

#include <functional>
#include <string>

namespace pesc {

// Where each field stands in the text, for messages of later checks.
struct TextLocations {
  google::protobuf::TextFormat::ParseInfoTree tree;
};

// Fills `message` from `text`. Throws UsageError listing every mistake as "where:line:column: ...".
void parse_text(const std::string& text, const std::string& where, google::protobuf::Message& message,
                TextLocations& locations);

// The same for a configuration that a checkpoint recorded, perhaps by an earlier version: fields that are
// gone since then are left out. Throws DataError for one that this version never had, and for a configuration
// with the names that fields had before those of Hugging Face.
void parse_recorded_text(const std::string& text, const std::string& where,
                         google::protobuf::Message& message);

// The same for text that did not come from a file: mistakes are listed as "where: ...".
void parse_inline_text(const std::string& text, const std::string& where, google::protobuf::Message& message);

}  // namespace pesc
