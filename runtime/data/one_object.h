// A file of rows that is one JSON object instead, with the rows in a list under one of its keys: {"train":
// [...]}.
#pragma once

#include <string>

namespace pesc {

// Reads the file to the end of its first value. Where that is an object, nothing stands behind it, and it is
// no row by its keys, says so: that the file is one object, its keys, and which of them look like the rows
// (lists of objects). Empty otherwise: the row's own error then says more, also of an object on one line
// without such a list. Time linear in the file, memory in its longest string. Throws as open_row_bytes() and
// its reader do.
enum class ObjectLines { kOne, kSeveral };
[[nodiscard]] std::string about_one_object(const std::string& path, ObjectLines lines);

}  // namespace pesc
