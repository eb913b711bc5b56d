#include "launcher/doctor/probe.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <exception>
#include <sstream>
#include <thread>

#include "ops/core/check.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kMostText = 1U << 20;
constexpr char kAnswered = 'A', kThrew = 'T';  // the first byte of what the child sends

void write_all(int fd, const std::string& text) {
  for (size_t at = 0; at < text.size();) {
    const ssize_t n = ::write(fd, text.data() + at, text.size() - at);
    if (n < 0 && errno != EINTR) return;
    if (n > 0) at += static_cast<size_t>(n);
  }
}

[[noreturn]] void answer_in_child(const std::function<std::string()>& ask, int answers, int errors) {
  ::setsid();
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::signal(SIGPIPE, SIG_DFL);
  const int null = ::open("/dev/null", O_RDWR);
  ::dup2(null, STDIN_FILENO);
  ::dup2(null, STDOUT_FILENO);
  ::dup2(errors, STDERR_FILENO);
  std::string sent;
  try {
    sent = kAnswered + ask();
  } catch (const std::exception& e) {
    sent = kThrew + std::string(e.what());
  } catch (...) {
    sent = kThrew + std::string("an unknown exception");
  }
  write_all(answers, sent);
  ::_exit(0);
}

// Reads what is there, without waiting.
void take(int fd, std::string& text) {
  char buffer[4096];
  for (ssize_t n = 0; (n = ::read(fd, buffer, sizeof(buffer))) > 0;) {
    if (text.size() < kMostText) text.append(buffer, static_cast<size_t>(n));
  }
}

// The beginning of what the child complained of, in one line, without the rules that Open MPI draws.
std::string first_words(const std::string& complaints) {
  std::istringstream lines(complaints);
  std::string words;
  for (std::string line; std::getline(lines, line);) {
    if (line.find_first_not_of("- \t") == std::string::npos) continue;
    words += str_cat(words.empty() ? "" : " ", line);
  }
  return printable(words, 240);
}

}  // namespace

ProbeResult probe(const std::function<std::string()>& ask, std::chrono::milliseconds limit) {
  ProbeResult result;
  int answers[2], errors[2];
  if (::pipe2(answers, O_CLOEXEC) != 0) {
    result.trouble = str_cat("a pipe cannot be made: ", std::strerror(errno));
    return result;
  }
  if (::pipe2(errors, O_CLOEXEC) != 0) {
    result.trouble = str_cat("a pipe cannot be made: ", std::strerror(errno));
    for (const int fd : answers) ::close(fd);
    return result;
  }
  const auto begin = Clock::now();
  const pid_t pid = ::fork();
  if (pid == 0) answer_in_child(ask, answers[1], errors[1]);
  const int why = errno;
  ::close(answers[1]);
  ::close(errors[1]);
  std::string said, complaints;
  int status = 0;
  bool late = false;
  if (pid > 0) {
    for (const int fd : {answers[0], errors[0]}) ::fcntl(fd, F_SETFL, O_NONBLOCK);
    while (::waitpid(pid, &status, WNOHANG) != pid) {
      take(answers[0], said);
      take(errors[0], complaints);
      if (!late && Clock::now() - begin > limit) {
        late = true;
        ::kill(pid, SIGKILL);
      }
      // One that waits for a driver cannot be killed before the driver answers.
      if (Clock::now() - begin > 2 * limit) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    ::kill(-pid, SIGKILL);  // what it has started in its session
    take(answers[0], said);
    take(errors[0], complaints);
  }
  ::close(answers[0]);
  ::close(errors[0]);
  result.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  const std::string quoted = complaints.empty() ? "" : ": " + first_words(complaints);
  if (pid < 0) {
    result.trouble = str_cat("a process cannot be started: ", std::strerror(why));
  } else if (!said.empty() && said.front() == kAnswered && !late) {
    result.text = said.substr(1);
  } else if (!said.empty() && said.front() == kThrew) {
    result.trouble = printable(said.substr(1), 400);
  } else if (late) {
    result.trouble = str_cat("no answer within ", static_cast<double>(limit.count()) / 1000, " s", quoted);
  } else if (WIFSIGNALED(status)) {
    result.trouble =
        str_cat("ended by signal ", WTERMSIG(status), " (", strsignal(WTERMSIG(status)), ")", quoted);
  } else {
    result.trouble = str_cat("ended with exit code ", WEXITSTATUS(status), quoted);
  }
  return result;
}

}  // namespace pesc
