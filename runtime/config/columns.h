// data.train[].columns and data.eval[].columns.
#pragma once

#include <map>
#include <string>

#include "runtime/config/field_checker.h"

namespace pesc {

namespace proto {
class Columns;
}  // namespace proto

// From the file's name of a field to ours. `source`: "data.train[0]". Throws UsageError for an empty name and
// for one that two fields have.
[[nodiscard]] std::map<std::string, std::string> read_columns(const proto::Columns& columns,
                                                              const std::string& source,
                                                              const FieldChecker& check);

}  // namespace pesc
