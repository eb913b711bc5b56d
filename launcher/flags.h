// The flags of `pesc`: one table of their names, the verbs that read them and what they set. The help, the
// parser, the shell's completion and tests/layering_test.py read it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "launcher/command_line.h"

namespace pesc {

inline constexpr double kAboveZero = -1;  // as Flag::least: any number above 0

struct Flag {
  using Target =
      std::variant<std::monostate, std::string CommandLine::*, std::vector<std::string> CommandLine::*,
                   bool CommandLine::*, int CommandLine::*, std::optional<int> CommandLine::*,
                   double CommandLine::*, uint64_t CommandLine::*>;
  std::string_view name;
  std::string_view verbs;  // that read it, parted by spaces
  // What stands for the value in the help; empty for a switch. FILE and PATH are completed with files, DIR and
  // FOLDER with folders.
  std::string_view value;
  std::string_view help;          // says what holds without the flag, unless a number of CommandLine does
  Target target;                  // nothing: `launch` reads it by itself
  double least = 0;               // of a number
  std::string_view choices = {};  // the values, or some that are words; parted by spaces
  std::string_view with = {};     // another flag, without which this one has no effect and is refused
};

[[nodiscard]] std::span<const Flag> flags();

// Nullptr for a name that is none.
[[nodiscard]] const Flag* find_flag(std::string_view name);
[[nodiscard]] bool reads(std::string_view verb, const Flag& flag);
// "--config"; "-n".
[[nodiscard]] std::string dashed_name(const Flag& flag);

// Sets the flag from its text. Throws UsageError naming both for a value of another type or out of range.
void set_flag(const Flag& flag, const std::string& value, CommandLine& command);

}  // namespace pesc
