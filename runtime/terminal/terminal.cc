#include "runtime/terminal/terminal.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

namespace pesc {
namespace {

std::vector<std::string> words_of_process(const std::string& proc) {
  std::ifstream file(proc + "/cmdline", std::ios::binary);
  std::vector<std::string> words;
  for (std::string word; std::getline(file, word, '\0');) words.push_back(word);
  return words;
}

// Open MPI's and MPICH's names of it, whatever the folder.
bool is_mpirun(const std::string& program) {
  const std::string name = program.substr(program.rfind('/') + 1);
  constexpr std::array<std::string_view, 5> kNames = {"mpirun", "mpiexec", "orterun", "prterun",
                                                      "mpiexec.hydra"};
  for (const std::string_view known : kNames) {
    if (name == known || name.starts_with(std::string(known) + ".")) return true;  // mpirun.openmpi
  }
  return false;
}

// Flags of mpirun, with one or two dashes, that put the ranks' output into files or marks before its lines.
bool changes_output(std::string_view word) {
  if (!word.starts_with("-")) return false;
  word.remove_prefix(word.starts_with("--") ? 2 : 1);
  for (const std::string_view flag : {"output", "tag-output", "timestamp-output", "xml", "xterm"}) {
    if (word.starts_with(flag)) return true;
  }
  return false;
}

bool is_terminal(const std::string& path) {
  struct stat what {};
  if (::stat(path.c_str(), &what) != 0 || !S_ISCHR(what.st_mode)) return false;
  const int file = ::open(path.c_str(), O_WRONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
  if (file < 0) return false;
  const bool yes = ::isatty(file) != 0;
  ::close(file);
  return yes;
}

// TERM says so of terminals that know no control characters: an editor's shell, for one.
bool is_dumb() {
  const char* term = std::getenv("TERM");
  return term != nullptr && std::string_view(term) == "dumb";
}

}  // namespace

bool uses_colour(int descriptor) {
  const char* no_colour = std::getenv("NO_COLOR");
  if (no_colour != nullptr && *no_colour != '\0') return false;
  return ::isatty(descriptor) != 0 && !is_dumb();
}

bool writes_to_terminal() {
  if (is_dumb()) return false;
  if (::isatty(STDERR_FILENO) != 0) return true;
  struct stat mine {};
  if (::fstat(STDERR_FILENO, &mine) != 0 || !S_ISFIFO(mine.st_mode)) return false;
  const std::string parent = "/proc/" + std::to_string(::getppid());
  const std::vector<std::string> words = words_of_process(parent);
  if (words.empty() || !is_mpirun(words.front())) return false;
  for (const std::string& word : words) {
    if (changes_output(word)) return false;
  }
  return is_terminal(parent + "/fd/2");
}

}  // namespace pesc
