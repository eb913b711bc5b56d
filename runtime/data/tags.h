// The tag that rows are reported under. A tag goes into metrics, tables and file names of other programs, so
// it is printable, well-formed UTF-8, whatever text it was made of.
#pragma once

#include <string>
#include <string_view>

namespace pesc {

// Whether `text` is well-formed UTF-8 without control characters.
[[nodiscard]] bool is_printable(std::string_view text);

// `text` with every byte that is no part of well-formed UTF-8, and every control character, written as \xE9:
// always printable. Texts above 256 bytes are cut to that, with "..." behind.
[[nodiscard]] std::string made_printable(std::string_view text);

// The source's tag, else the row's own, else the file's name without folder and ending; made printable.
[[nodiscard]] std::string tag_of(std::string_view source_tag, std::string_view row_tag,
                                 const std::string& path);

}  // namespace pesc
