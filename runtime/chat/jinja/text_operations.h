// Python's operations on text, keeping its origin. All positions are bytes.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "runtime/chat/jinja/unicode.h"
#include "runtime/chat/jinja/value.h"

namespace pesc::jinja {

// In time linear in both, whatever they hold.
[[nodiscard]] size_t find_text(std::string_view text, std::string_view wanted, size_t from);

[[nodiscard]] Text part(const Text& text, size_t begin, size_t end);
// Without the characters of `chars` (white space: nullopt) at its ends.
enum class Ends : uint8_t { kBoth, kLeft, kRight };
[[nodiscard]] Text stripped(const Text& text, const std::optional<std::string_view>& chars, Ends ends);
// At white space (runs of it, none at the ends) or at each `separator`; at most `most` times where that is
// not negative.
[[nodiscard]] std::vector<Text> split(Heap& heap, const Text& text,
                                      const std::optional<std::string_view>& separator, int64_t most);
[[nodiscard]] std::vector<Text> split_from_right(Heap& heap, const Text& text, std::string_view separator,
                                                 int64_t most);
[[nodiscard]] std::vector<Text> split_lines(Heap& heap, const Text& text);
[[nodiscard]] Text replaced(Heap& heap, const Text& text, std::string_view old, const Text& by, int64_t most);
[[nodiscard]] Text joined(Heap& heap, const std::vector<Text>& parts, const Text& between);
[[nodiscard]] Text in_case(const Text& text, Case to);
// str.title(): the first letter of each run of letters. Jinja's filter of that name cuts at white space and
// -({[<.
[[nodiscard]] Text titled(const Text& text);
[[nodiscard]] Text titled_words(const Text& text);
[[nodiscard]] Text capitalized(const Text& text);
// & < > " ' for HTML.
[[nodiscard]] Text escaped(Heap& heap, const Text& text);

}  // namespace pesc::jinja
