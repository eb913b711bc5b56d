#include "launcher/launch_hosts.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <sstream>
#include <string_view>
#include <thread>

#include "launcher/launch_process.h"
#include "ops/core/check.h"
#include "runtime/recovery/rank_files.h"

namespace pesc {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kAnswerWithin = std::chrono::seconds(10);
constexpr auto kPoll = std::chrono::milliseconds(20);
constexpr size_t kAtATime = 32;
constexpr size_t kWhyBytes = 160;
constexpr int kLaunchesToBlame = 2;
constexpr std::string_view kNote = "pesc-host-note: ";

struct Question {
  Host* host;
  pid_t pid;
  int fd;
  Clock::time_point asked;
};

std::string read_what_is_there(int fd) {
  std::string text;
  char buffer[4096];
  for (ssize_t n = 0; (n = ::read(fd, buffer, sizeof(buffer))) > 0;)
    text.append(buffer, static_cast<size_t>(n));
  return text;
}

// mpirun frames its messages with lines of dashes; the agent's complaint comes before them.
std::string first_words(const std::string& text) {
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    const size_t begin = line.find_first_not_of(" \t\r");
    if (begin == std::string::npos || line.find_first_not_of('-') == std::string::npos) continue;
    return line.substr(begin, kWhyBytes);
  }
  return "";
}

std::vector<std::string> check_words(const std::string& program, const std::string& run_dir,
                                     const LaunchMark& mark) {
  return {program, "launch", "--check-host", run_dir, mark.run(), mark.temporary_folder()};
}

Question ask(Host& host, std::vector<std::string> words, const std::vector<std::string>& program) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) throw IoError(str_cat("a pipe cannot be made: ", std::strerror(errno)));
  ::fcntl(ends[0], F_SETFL, O_NONBLOCK);
  words.insert(words.end(), program.begin(), program.end());
  // Without the mark: it would be taken for left over.
  const pid_t pid = start_process(words, "", ends[1], ends[1]);
  ::close(ends[1]);
  return {&host, pid, ends[0], Clock::now()};
}

Question ask_by_mpirun(Host& host, const LaunchMark& mark, const std::vector<std::string>& program) {
  std::vector<std::string> words{"mpirun", "-np", "1", "--host", host.name, "--bind-to", "none"};
  words.insert(words.end(), {"--mca", "orte_tmpdir_base", mark.session_directory()});
  if (::geteuid() == 0) words.emplace_back("--allow-run-as-root");
  return ask(host, words, program);
}

void hear(const Question& q, std::vector<std::string>& notes) {
  int status = 0;
  bool late = false;
  while (::waitpid(q.pid, &status, WNOHANG) == 0) {
    if (Clock::now() - q.asked > kAnswerWithin) {
      late = true;
      ::kill(-q.pid, SIGKILL);  // its session: the agent too
    }
    std::this_thread::sleep_for(kPoll);
  }
  const std::string text = read_what_is_there(q.fd);
  ::close(q.fd);
  if (!late && WIFEXITED(status) && WEXITSTATUS(status) == 0) {
    q.host->unreachable.clear();
    std::istringstream in(text);
    for (std::string line; std::getline(in, line);) {
      if (line.starts_with(kNote)) notes.push_back(q.host->name + ": " + line.substr(kNote.size()));
    }
    return;
  }
  const std::string words = first_words(text);
  q.host->unreachable = late            ? str_cat("no answer within ", kAnswerWithin.count(), " s")
                        : words.empty() ? str_cat("its question ends with status ", status)
                                        : words;
}

// Whether a hostfile's name is of the host that calls itself `host`.
bool names_host(const std::string& name, const std::string& host) {
  if (name == host || (host == host_name() && is_this_host(name))) return true;
  const auto domain = [](const std::string& of, const std::string& longer) {
    return longer.size() > of.size() && longer.starts_with(of) && longer[of.size()] == '.';
  };
  return domain(name, host) || domain(host, name);
}

int largest_ep(int most, int64_t experts, int ranks) {
  int ep = std::min(most, ranks);
  while (ep > 1 && (experts % ep != 0 || ranks % ep != 0)) --ep;
  return ep;
}

template <class Usable>
std::optional<Placement> place_on(const std::vector<Host>& hosts, int ranks, const ExperimentConfig& c,
                                  Usable usable) {
  Placement p;
  p.ranks = ranks;
  p.ep = c.parallel.ep;
  int slots = 0;
  bool slots_known = true;
  for (const Host& h : hosts) {
    slots_known = slots_known && h.slots > 0;
    if (usable(h)) {
      slots += h.slots;
      p.hosts.push_back(h);
    } else {
      p.left_out.push_back(h.name);
    }
  }
  if (p.left_out.empty()) return p;
  if (!slots_known || p.hosts.empty()) return std::nullopt;
  if (slots >= ranks) return p;
  if (!c.recovery.smaller_layout || slots < c.parallel.tp) return std::nullopt;
  p.smaller = true;
  p.ranks = slots / c.parallel.tp * c.parallel.tp;
  p.ep = c.pesc.mode == TrainMode::kPesc ? largest_ep(c.parallel.ep, c.pesc.moe.num_experts, p.ranks) : 1;
  return p;
}

}  // namespace

bool is_this_host(const std::string& name) {
  return name == "localhost" || name == "127.0.0.1" || name == host_name();
}

std::vector<std::string> look_at_hosts(std::vector<Host>& hosts, const std::string& program,
                                       const std::string& run_dir, const LaunchMark& mark) {
  std::vector<std::string> notes;
  std::vector<Host*> remote;
  for (Host& h : hosts) {
    if (!is_this_host(h.name)) remote.push_back(&h);
  }
  const std::vector<std::string> words = check_words(program, run_dir, mark);
  for (size_t begin = 0; begin < remote.size(); begin += kAtATime) {
    std::vector<Question> questions;
    for (size_t i = begin; i < std::min(begin + kAtATime, remote.size()); ++i)
      questions.push_back(ask_by_mpirun(*remote[i], mark, words));
    for (const Question& q : questions) hear(q, notes);
  }
  return notes;
}

std::vector<std::string> clean_allocation(int nodes, const std::string& program, const std::string& run_dir,
                                          const LaunchMark& mark) {
  Host all{"this allocation", 0, ""};
  std::vector<std::string> notes;
  hear(ask(all,
           {"srun", "--overlap", "--quiet", str_cat("--nodes=", nodes), str_cat("--ntasks=", nodes),
            "--ntasks-per-node=1", "--mpi=none"},
           check_words(program, run_dir, mark)),
       notes);
  if (!all.unreachable.empty()) notes.push_back("this allocation cannot be looked for: " + all.unreachable);
  return notes;
}

int check_host(const std::string& run_dir, const std::string& mark, const std::string& temporary_folder) {
  if (::access((run_dir + "/pesc.lock").c_str(), R_OK | W_OK) != 0) {
    std::fprintf(stderr, "run directory %s on host %s: %s; it must be on a file system of all hosts\n",
                 run_dir.c_str(), host_name().c_str(), std::strerror(errno));
    return static_cast<int>(ExitCode::kIo);
  }
  for (const std::string& note : LaunchMark(mark, temporary_folder).remove_leftovers())
    std::printf("%s%s\n", std::string(kNote).c_str(), note.c_str());
  return 0;
}

std::optional<Placement> place_ranks(const std::vector<Host>& hosts, int ranks, const ExperimentConfig& c) {
  if (auto p =
          place_on(hosts, ranks, c, [](const Host& h) { return h.unreachable.empty() && h.suspect.empty(); }))
    return p;
  return place_on(hosts, ranks, c, [](const Host& h) { return h.unreachable.empty(); });
}

bool HostHealth::launch_ended(const std::set<std::string>& dead_on, std::vector<Host>& hosts) {
  const std::string one = dead_on.size() == 1 ? *dead_on.begin() : "";
  times_ = one.empty() ? 0 : one == suspect_ ? times_ + 1 : 1;
  suspect_ = one;
  if (times_ < kLaunchesToBlame) return false;
  bool marked = false;
  for (Host& h : hosts) {
    if (!names_host(h.name, one)) continue;
    marked = marked || h.suspect.empty();
    h.suspect = str_cat(times_, " launches in a row died there and nowhere else");
  }
  return marked;
}

std::string names_of(const std::vector<Host>& hosts) {
  std::string out;
  for (const Host& h : hosts) out += (out.empty() ? "" : ", ") + h.name;
  return out;
}

std::string unreachable_hosts(const std::vector<Host>& hosts) {
  std::string out;
  for (const Host& h : hosts) {
    if (!h.unreachable.empty()) out += str_cat(out.empty() ? "" : ", ", h.name, " (", h.unreachable, ")");
  }
  return out;
}

std::string why_left_out(const std::vector<Host>& hosts, const std::vector<std::string>& left_out) {
  std::string out;
  for (const Host& h : hosts) {
    if (std::find(left_out.begin(), left_out.end(), h.name) == left_out.end()) continue;
    out += str_cat(out.empty() ? "" : ", ", h.name, " (", h.unreachable.empty() ? h.suspect : h.unreachable,
                   ")");
  }
  return out;
}

}  // namespace pesc
