// A regular expression of a tokenizer.json, written for the Oniguruma library, as one for PCRE2.
//
// Every class (\p{L}, \s, [^\r\n]) becomes a list of ranges from our own tables, so that PCRE2's version of
// Unicode does not matter. What the two libraries read differently is written out; what is not known here is
// refused.
#pragma once

#include <string>
#include <string_view>

namespace pesc {

// Throws DataError, which names the construct and its place in the pattern.
[[nodiscard]] std::string rewrite_pattern(std::string_view pattern);

}  // namespace pesc
