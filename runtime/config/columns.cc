#include "runtime/config/columns.h"

#include <google/protobuf/descriptor.h>

#include <vector>

#include "configs/schema/experiment.pb.h"
#include "ops/core/check.h"
#include "runtime/text/printable.h"

namespace pesc {

std::map<std::string, std::string> read_columns(const proto::Columns& columns, const std::string& source,
                                                const FieldChecker& check) {
  std::map<std::string, std::string> ours_of;
  const auto* reflection = columns.GetReflection();
  std::vector<const google::protobuf::FieldDescriptor*> set;
  reflection->ListFields(columns, &set);
  for (const auto* f : set) {
    const std::string field = str_cat(source, ".columns.", f->name());
    const std::string theirs = reflection->GetString(columns, f);
    check.require(!theirs.empty(), field, "is empty; it is the name of a field of the file's rows");
    const auto [other, is_new] = ours_of.emplace(theirs, f->name());
    check.require(is_new, field,
                  str_cat("is '", printable(theirs), "', which ", source, ".columns.", other->second,
                          " names already; a field of a row is one thing"));
  }
  return ours_of;
}

}  // namespace pesc
