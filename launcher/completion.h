// The script with which bash completes a `pesc` command, made from the tables of verbs and flags and from the
// descriptors of the experiment's schema, so that it knows each new one.
#pragma once

#include <google/protobuf/descriptor.h>

#include <map>
#include <string>
#include <vector>

namespace pesc {

// What may stand behind a path of --set. Lists are entered at their first element: "data.train[0]".
struct FieldNames {
  // By the path of a message, "" for the whole: the names in it, with "." behind a message and "=" behind
  // every other field.
  std::map<std::string, std::vector<std::string>> names;
  // By the path of a field: its values, of an enum or a bool.
  std::map<std::string, std::vector<std::string>> values;
};
[[nodiscard]] FieldNames field_names_below(const google::protobuf::Descriptor& message);

[[nodiscard]] std::string bash_completion();

}  // namespace pesc
