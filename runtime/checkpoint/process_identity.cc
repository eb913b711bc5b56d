#include "runtime/checkpoint/process_identity.h"

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <sstream>

#include "ops/core/check.h"

namespace pesc {
namespace {

std::string first_word(const std::string& path) {
  std::ifstream in(path);
  std::string word;
  in >> word;
  return word.empty() ? "-" : word;
}

// When the process began; "-" where there is none.
std::string start_of(pid_t pid) {
  std::ifstream in(str_cat("/proc/", pid, "/stat"));
  std::string text;
  std::getline(in, text);
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return "-";
  std::istringstream fields(text.substr(name_end + 1));
  std::string field;
  for (int i = 0; i < 20; ++i) fields >> field;  // the 22nd of all
  return field;
}

}  // namespace

ProcessIdentity this_process() {
  char host[256] = {};
  if (::gethostname(host, sizeof host - 1) != 0) host[0] = '?';
  char pids[64] = {};
  if (::readlink("/proc/self/ns/pid", pids, sizeof pids - 1) <= 0) pids[0] = '-';
  const pid_t pid = ::getpid();
  return {host, first_word("/proc/sys/kernel/random/boot_id"), pids, pid, start_of(pid)};
}

std::string to_string(const ProcessIdentity& o) {
  return str_cat("pid ", o.pid, " on host ", o.host, " boot ", o.boot, " pids ", o.pids, " start ", o.start,
                 '\n');
}

bool parse(const std::string& text, ProcessIdentity& o) {
  std::istringstream in(text);
  std::string pid, on, host, boot, pids, start;
  in >> pid >> o.pid >> on >> host >> o.host >> boot >> o.boot >> pids >> o.pids >> start >> o.start;
  return in && pid == "pid" && on == "on" && host == "host" && boot == "boot" && pids == "pids" &&
         start == "start";
}

bool is_gone(const ProcessIdentity& o) {
  const ProcessIdentity here = this_process();
  if (o.host != here.host) return false;
  if (o.boot != here.boot && o.boot != "-" && here.boot != "-") return true;
  if (o.pids != here.pids) return false;
  return (::kill(o.pid, 0) != 0 && errno == ESRCH) || start_of(o.pid) != o.start;
}

}  // namespace pesc
