#include "runtime/terminal.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/utf8.h"

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

// Bytes of the character that begins at `at`; 0 where none does.
size_t utf8_length(std::string_view text, size_t at) {
  const auto lead = static_cast<unsigned char>(text[at]);
  const size_t length = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  const std::string_view character = text.substr(at, length);
  return character.size() == length && valid_utf8_prefix(character) == length ? length : 0;
}

}  // namespace

bool writes_to_terminal() {
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

std::string terminal_text(std::string_view text, Keep keep) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const auto byte = static_cast<unsigned char>(text[at]);
    const size_t length = utf8_length(text, at);
    // U+0080 to U+009F are control characters too.
    const bool second_page = length == 2 && byte == 0xc2 && static_cast<unsigned char>(text[at + 1]) < 0xa0;
    const bool kept = keep == Keep::kLines && (byte == '\n' || byte == '\t');
    if (length > 0 && !second_page && (kept || (byte >= 0x20 && byte != 0x7f))) {
      out += text.substr(at, length);
      at += length;
      continue;
    }
    char escaped[8];
    std::snprintf(escaped, sizeof(escaped), "\\x%02x", byte);
    out += escaped;
    ++at;
  }
  return out;
}

}  // namespace pesc
