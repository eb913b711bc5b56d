// What `pesc help` and `pesc VERB --help` print.
#pragma once

#include <string>
#include <string_view>

#include "launcher/flags.h"
#include "launcher/verbs.h"

namespace pesc {

enum class Headings { kPlain, kBold };  // bold with the control characters of a terminal

// The verbs, and where to read on.
[[nodiscard]] std::string usage(Headings headings = Headings::kPlain);
// What the verb does, its flags with their defaults, examples, exit codes.
[[nodiscard]] std::string help_text(const Verb& verb, Headings headings = Headings::kPlain);
// The end of a usage error: "; see `pesc eval --help`".
[[nodiscard]] std::string see_help(std::string_view verb);

// What help says of a flag: its text, and the default of a number.
[[nodiscard]] std::string flag_help(const Flag& flag);

}  // namespace pesc
