// Says what is wrong with a text that is no JSON, in the words of whoever wrote it.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace pesc {

// Bytes of the text that a message cites.
inline constexpr size_t kCited = 40;

// What the text is: a row of data, or a whole file of one value.
enum class JsonText { kRow, kFile };

// `position` is the number of bytes that the parser had read when it gave up, `reason` its message. What
// comes back names what stands there and, where it can be told, what to do about it. Linear in the text.
[[nodiscard]] std::string json_mistake(std::string_view text, size_t position, std::string_view reason,
                                       JsonText what = JsonText::kRow);

}  // namespace pesc
