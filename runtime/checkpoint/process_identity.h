// Which process left a file: what tells whether it still runs.
#pragma once

#include <sys/types.h>

#include <string>

namespace pesc {

struct ProcessIdentity {
  std::string host, boot, pids;  // pids: the namespace in which the number is one
  pid_t pid = 0;
  std::string
      start;  // in the kernel's ticks since the machine did: tells a number given again from the process before
};

[[nodiscard]] ProcessIdentity this_process();
// One line of text, and back; false where the text is no such line.
[[nodiscard]] std::string to_string(const ProcessIdentity& process);
[[nodiscard]] bool parse(const std::string& text, ProcessIdentity& process);
// Whether the process is known to have ended. Of another host, or another namespace of numbers, it is not known.
[[nodiscard]] bool is_gone(const ProcessIdentity& process);

}  // namespace pesc
