// `--set path.to.field=value`: sets one field of a message, by its name.
//
//   train.learning_rate=1e-3      a number, an enum value by name, true or false
//   run_dir=runs/a b              a string as it is, or in double quotes with the escapes of protobuf text
//   lora.target=q_proj,v_proj     a repeated string: replaces the list; [q_proj,v_proj] and [] are lists too
//   lora.target[1]=k_proj         one element of a list; the index after the last one appends
//   data.train[0].path=a.jsonl    a field of one element; here too the index after the last one appends
//   data.eval=[{path: "a"}]       a message, or a list of messages, as protobuf text
#pragma once

#include <google/protobuf/message.h>

#include <string>
#include <vector>

namespace pesc {

// Applies one assignment. Setting one field of a oneof (train.steps, train.epochs) clears the other. Throws
// UsageError naming the assignment and the nearest valid field or enum value.
void apply_override(const std::string& assignment, google::protobuf::Message& message);

// Refuses two assignments of one command line to different fields that exclude each other: which one is meant
// nobody knows. (One that replaces a field of the file is meant.) Throws UsageError naming both.
void check_overrides_agree(const std::vector<std::string>& assignments,
                           const google::protobuf::Message& message);

}  // namespace pesc
