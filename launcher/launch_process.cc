#include "launcher/launch_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <sstream>
#include <string_view>
#include <thread>

#include "launcher/launch_mark.h"
#include "launcher/launch_signals.h"
#include "launcher/standard_output.h"
#include "ops/core/check.h"

extern char** environ;

namespace pesc {
namespace {

constexpr size_t kLastLines = 20;  // of each source
constexpr size_t kLineBytes = 500;
constexpr size_t kLongestTag = 40;
constexpr size_t kMostWaiting = 1U << 20;
constexpr int kPatienceAtTheEnd = 2000;  // ms

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> out;
  for (std::string& w : words) out.push_back(w.data());
  out.push_back(nullptr);
  return out;
}

enum class Tag { kNo, kPerhaps, kYes };
// Whether `text` begins with "[job,rank]<stdout>:" or "<stderr>:"; of a tag, its rank and length.
Tag find_tag(std::string_view text, int& rank, size_t& length) {
  size_t at = 0;
  const auto literal = [&](std::string_view want) {
    const std::string_view have = text.substr(at, want.size());
    if (have != want.substr(0, have.size())) return Tag::kNo;
    at += have.size();
    return have.size() == want.size() ? Tag::kYes : Tag::kPerhaps;
  };
  const auto number = [&] {
    const size_t begin = at;
    while (at < text.size() && text[at] >= '0' && text[at] <= '9') ++at;
    if (at == text.size()) return Tag::kPerhaps;
    std::from_chars(text.data() + begin, text.data() + at, rank);
    return at > begin ? Tag::kYes : Tag::kNo;
  };
  Tag found = literal("[");
  if (found == Tag::kYes) found = number();
  if (found == Tag::kYes) found = literal(",");
  if (found == Tag::kYes) found = number();
  if (found == Tag::kYes) found = literal("]<std");
  if (found == Tag::kYes) found = text.substr(at, 1) == "o" ? literal("out>:") : literal("err>:");
  length = at;
  return found;
}

}  // namespace

bool is_in_path(const std::string& program) {
  const char* path = std::getenv("PATH");
  std::istringstream in(path == nullptr ? "/bin:/usr/bin" : path);  // as execvp takes it
  for (std::string folder; std::getline(in, folder, ':');) {
    const std::filesystem::path file = std::filesystem::path(folder.empty() ? "." : folder) / program;
    std::error_code ignored;
    if (std::filesystem::is_regular_file(file, ignored) && ::access(file.c_str(), X_OK) == 0) return true;
  }
  return false;
}

pid_t start_process(std::vector<std::string> words, const std::string& mark, int out, int err) {
  std::vector<std::string> environment;
  for (char** e = environ; *e != nullptr; ++e) {
    if (std::strncmp(*e, "PESC_LAUNCH=", 12) != 0) environment.emplace_back(*e);
  }
  if (!mark.empty()) environment.push_back(mark);
  const std::vector<char*> argv = pointers(words);
  const std::vector<char*> envp = pointers(environment);
  const pid_t parent = ::getpid();
  const std::string missing =
      str_cat("pesc launch: ", words.front(), " is not in PATH; is it installed here?\n");
  const std::string failed = str_cat("pesc launch: ", words.front(), " cannot be started, error ");
  const HeldSignals held;
  const pid_t pid = ::fork();
  if (pid < 0) throw IoError(str_cat("a process cannot be started: ", std::strerror(errno)));
  if (pid > 0) return pid;
  // Only async-signal-safe calls from here on.
  ::setsid();
  ::prctl(PR_SET_PDEATHSIG, SIGINT);
  if (::getppid() != parent) ::_exit(127);
  HeldSignals::in_child();
  const int null = ::open("/dev/null", O_RDONLY);
  ::dup2(null, STDIN_FILENO);
  ::dup2(out, STDOUT_FILENO);
  ::dup2(err, STDERR_FILENO);
  ::execvpe(argv[0], argv.data(), envp.data());
  const int why = errno;
  const std::string& text = why == ENOENT ? missing : failed;
  [[maybe_unused]] ssize_t n = ::write(STDERR_FILENO, text.data(), text.size());
  if (why != ENOENT) {
    const char digits[] = {static_cast<char>('0' + why / 100 % 10), static_cast<char>('0' + why / 10 % 10),
                           static_cast<char>('0' + why % 10), '\n'};
    n = ::write(STDERR_FILENO, digits, sizeof(digits));
  }
  ::_exit(127);
}

Answer ask_program(const std::vector<std::string>& words, std::chrono::milliseconds limit) {
  constexpr auto kPoll = std::chrono::milliseconds(5);
  constexpr size_t kMostText = 64U << 10;
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) throw IoError(str_cat("a pipe cannot be made: ", std::strerror(errno)));
  ::fcntl(ends[0], F_SETFL, O_NONBLOCK);
  const auto begin = std::chrono::steady_clock::now();
  Answer answer;
  const pid_t pid = start_process(words, "", ends[1], ends[1]);
  ::close(ends[1]);
  const auto read_all = [&] {
    char buffer[4096];
    for (ssize_t n = 0; (n = ::read(ends[0], buffer, sizeof(buffer))) > 0;) {
      if (answer.text.size() < kMostText) answer.text.append(buffer, static_cast<size_t>(n));
    }
  };
  for (;;) {
    const pid_t ended = ::waitpid(pid, &answer.status, WNOHANG);
    if (ended == pid || (ended < 0 && errno != EINTR)) break;
    read_all();
    if (!answer.late && std::chrono::steady_clock::now() - begin > limit) {
      answer.late = true;
      ::kill(-pid, SIGKILL);  // its session
      ::kill(pid, SIGKILL);   // where it has not come to have one
    }
    std::this_thread::sleep_for(kPoll);
  }
  read_all();
  ::close(ends[0]);
  return answer;
}

int run_daemon(const std::string& session_directory, char** daemon) {
  sigset_t blocked;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGTERM);
  ::sigprocmask(SIG_BLOCK, &blocked, nullptr);
  const pid_t pid = ::fork();
  if (pid < 0) throw IoError(str_cat("a process cannot be started: ", std::strerror(errno)));
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    default_write_signals();
    ::execvp(daemon[0], daemon);
    std::fprintf(stderr, "pesc launch: %s: %s; is Open MPI installed here and in PATH?\n", daemon[0],
                 std::strerror(errno));
    ::_exit(127);
  }
  ::signal(SIGTERM, SIG_IGN);  // blocked here, but not in threads that libraries have made
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
  LaunchMark::remove_directories(session_directory);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

std::string TagFilter::take(const std::string& text) {
  pending_ += text;
  std::string out;
  size_t at = 0;
  while (at < pending_.size()) {
    int rank = 0;
    size_t length = 0;
    const Tag tag = find_tag(std::string_view(pending_).substr(at, kLongestTag), rank, length);
    if (tag == Tag::kPerhaps && pending_.size() - at < kLongestTag) break;
    if (tag == Tag::kYes) {
      source_ = rank;
      at += length;
    } else {
      put(pending_[at++], out);
    }
  }
  pending_.erase(0, at);
  return out;
}

std::string TagFilter::flush() {
  std::string out;
  for (const char c : pending_) put(c, out);
  pending_.clear();
  while (!line_.empty()) {
    source_ = line_.begin()->first;
    std::string unused;
    put('\n', unused);
  }
  return out;
}

void TagFilter::put(char c, std::string& out) {
  out += c;
  std::string& line = line_[source_];
  if (c == '\r') line.clear();  // a progress line is written over
  if (c != '\n' && c != '\r' && line.size() < kLineBytes) line += c;
  if (c != '\n') return;
  if (!line.empty()) {
    std::deque<std::string>& last = last_[source_];
    last.push_back(line);
    if (last.size() > kLastLines) last.pop_front();
  }
  line_.erase(source_);
  source_ = kMpirunItself;
}

OutputPipe::OutputPipe(std::FILE* to) : to_(to) {
  if (::pipe2(pipe_, O_CLOEXEC) != 0) throw IoError(str_cat("a pipe cannot be made: ", std::strerror(errno)));
  ::fcntl(pipe_[0], F_SETFL, O_NONBLOCK);
}

OutputPipe::~OutputPipe() {
  close_write();
  ::close(pipe_[0]);
}

void OutputPipe::close_write() {
  if (pipe_[1] >= 0) ::close(pipe_[1]);
  pipe_[1] = -1;
}

void OutputPipe::take() {
  char buffer[4096];
  ssize_t n = 0;
  while ((n = ::read(pipe_[0], buffer, sizeof(buffer))) > 0)
    waiting_ += filter_.take(std::string(buffer, static_cast<size_t>(n)));
  pass_on(0);
  if (n == 0) open_ = false;
}

void OutputPipe::finish() {
  take();
  waiting_ += filter_.flush();
  pass_on(kPatienceAtTheEnd);
}

void OutputPipe::pass_on(int patience_ms) {
  std::fflush(to_);
  const int fd = ::fileno(to_);
  while (!waiting_.empty()) {
    pollfd room{fd, POLLOUT, 0};
    const int ready = ::poll(&room, 1, patience_ms);
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) break;
    // A pipe that can be written has room for so much.
    const size_t most = std::min<size_t>(waiting_.size(), PIPE_BUF);
    const ssize_t n = (room.revents & POLLOUT) != 0 ? ::write(fd, waiting_.data(), most) : -1;
    if (n < 0 && (room.revents & POLLOUT) != 0 && (errno == EINTR || errno == EAGAIN)) break;
    if (n < 0) {
      waiting_.clear();  // the reader is gone, or the disk is full
      return;
    }
    waiting_.erase(0, static_cast<size_t>(n));
  }
  if (waiting_.empty() && left_out_ > 0) {
    waiting_ = str_cat("pesc launch: ", left_out_, " bytes of output are left out: nobody read them\n");
    left_out_ = 0;
  }
  if (waiting_.size() <= kMostWaiting) return;
  const size_t line = waiting_.find('\n', waiting_.size() - kMostWaiting);
  const size_t drop = line == std::string::npos ? waiting_.size() - kMostWaiting : line + 1;
  waiting_.erase(0, drop);
  left_out_ += drop;
}

}  // namespace pesc
