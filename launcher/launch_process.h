// Starting mpirun, and what it and its ranks print.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <cstdio>
#include <deque>
#include <map>
#include <string>
#include <vector>

namespace pesc {

constexpr int kMpirunItself = -1;  // in place of a rank: the line is mpirun's own

// Whether PATH has such a program.
bool is_in_path(const std::string& program);

// Starts words[0] from PATH in its own session, with stdin from /dev/null and `mark` ("NAME=value"; empty:
// none) in its environment. It gets SIGINT when the supervisor dies. SIGTERM is blocked in it: Slurm sends
// SIGTERM to every process of a job at once, which tells the ranks to save, and mpirun would kill them 2 s
// later. A signal that is blocked for mpirun still reaches its ranks. Throws IoError.
pid_t start_process(std::vector<std::string> words, const std::string& mark, int out, int err);

// The output of a program, stdout and stderr together, and how it ended. It is killed after `limit`.
struct Answer {
  int status = 0;     // as of waitpid
  bool late = false;  // it was killed
  std::string text;
};
[[nodiscard]] Answer ask_program(const std::vector<std::string>& words, std::chrono::milliseconds limit);

// pesc launch --daemon DIRECTORY orted ...: what Slurm starts on the other nodes instead of Open MPI's
// daemon, for the same reason. Runs that daemon with SIGTERM blocked and removes the launch's directories
// after it.
int run_daemon(const std::string& session_directory, char** daemon);

// Parts the output of `mpirun --tag-output` by ranks. A tag, "[1,RANK]<stderr>:", stands before every line
// and every later piece of one.
class TagFilter {
 public:
  // The text without its tags. What may be the beginning of a tag waits for the next call, or for flush().
  std::string take(const std::string& text);
  std::string flush();
  // The last lines of each rank, and of mpirun, which tags none of its own.
  [[nodiscard]] const std::map<int, std::deque<std::string>>& last_lines() const { return last_; }

 private:
  void put(char c, std::string& out);
  std::string pending_;
  int source_ = kMpirunItself;
  std::map<int, std::string> line_;
  std::map<int, std::deque<std::string>> last_;
};

// A pipe whose tagged text goes on, untagged, to `to`. The ranks never wait for who reads there: what a
// paused reader does not take is kept, the last MiB of it, and what nobody can take any more is dropped.
class OutputPipe {
 public:
  explicit OutputPipe(std::FILE* to);
  ~OutputPipe();
  OutputPipe(const OutputPipe&) = delete;
  OutputPipe& operator=(const OutputPipe&) = delete;
  [[nodiscard]] int read_end() const { return open_ ? pipe_[0] : -1; }
  [[nodiscard]] int write_end() const { return pipe_[1]; }
  void close_write();
  // Passes on what is there; never waits.
  void take();
  // The same for the last time; waits for a paused reader, but not for long.
  void finish();
  [[nodiscard]] const TagFilter& filter() const { return filter_; }

 private:
  void pass_on(int patience_ms);
  std::FILE* to_;
  std::string waiting_;  // for the reader
  size_t left_out_ = 0;  // bytes
  TagFilter filter_;
  int pipe_[2] = {-1, -1};
  bool open_ = true;
};

}  // namespace pesc
