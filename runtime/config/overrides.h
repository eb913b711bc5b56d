// `--set path.to.field=value`: sets one field of a message, by its name.
//
//   train.learning_rate=1e-3           a number, an enum value by name, true or false
//   run_dir=runs/a b                   a string as it is, or quoted with protobuf text's escapes
//   lora.target_modules=q_proj,v_proj  a repeated string: the whole list, also as [q_proj,v_proj] or []
//   lora.target_modules[1]=k_proj      one of a list; the index after the last one appends
//   data.train[0].path=a.jsonl         a field of one of a list; the index after the last one appends
//   data.eval=[{path: "a"}]            a group of fields, or a list of them, as protobuf text
#pragma once

#include <google/protobuf/message.h>

#include <string>
#include <vector>

namespace pesc {

// Applies one assignment; of fields that exclude each other (train.max_steps, train.num_train_epochs) the one
// set replaces the other. Throws UsageError naming the assignment and the right or nearest field or enum
// value.
void apply_override(const std::string& assignment, google::protobuf::Message& message);

// Refuses two assignments of one command line to different fields that exclude each other: which one is meant
// nobody knows. (One that replaces a field of the file is meant.) Throws UsageError naming both.
void check_overrides_agree(const std::vector<std::string>& assignments,
                           const google::protobuf::Message& message);

}  // namespace pesc
