// The tag that rows are reported under. A tag goes into metrics, tables and file names of other programs, so
// it is printable, well-formed UTF-8, whatever text it was made of.
#pragma once

#include <string>
#include <string_view>

namespace pesc {

// The source's tag, else the row's own, else the file's name without folder and endings; made printable.
[[nodiscard]] std::string tag_of(std::string_view source_tag, std::string_view row_tag,
                                 const std::string& path);

}  // namespace pesc
