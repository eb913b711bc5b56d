// The verbs of `pesc`: one table of what each does, its examples and its exit codes. The dispatch in main(),
// `pesc help`, `pesc VERB --help`, the shell's completion and the tests read it. Which flags a verb reads is
// in the table of launcher/flags.cc.
#pragma once

#include <array>
#include <span>
#include <string>
#include <string_view>

#include "launcher/command_line.h"

namespace pesc {

struct Example {
  std::string_view command;  // as one types it, "pesc eval --config my.textproto"
  std::string_view what;     // what it does
};

struct Verb {
  std::string_view name;
  std::string_view arguments;       // behind `pesc NAME`: "--config FILE [flags]"
  std::string_view summary;         // one line, without a full stop
  std::string_view about;           // one paragraph
  std::array<Example, 4> examples;  // two to four; one without a command is none
  std::string_view exit_codes;      // "0 64 65"
  std::string_view when_one{};      // what the exit code 1 says, where it is one of them
  // One of the two: on every rank, after MPI has started; or alone and without MPI. `launch` has neither:
  // main() gives it the words themselves.
  int (*run)(const Process& process, const CommandLine& command) = nullptr;
  int (*run_alone)(const CommandLine& command) = nullptr;
};

[[nodiscard]] std::span<const Verb> verbs();
// Nullptr for a name that is none.
[[nodiscard]] const Verb* find_verb(std::string_view name);
// The same; throws UsageError naming the nearest verb.
[[nodiscard]] const Verb& known_verb(const std::string& name);

// What the exit code of the verb means.
[[nodiscard]] std::string_view exit_code_meaning(const Verb& verb, int code);

}  // namespace pesc
