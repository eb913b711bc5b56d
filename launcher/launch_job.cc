#include "launcher/launch_job.h"

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>

#include "launcher/launch_process.h"
#include "ops/core/check.h"
#include "runtime/clock.h"

namespace pesc {
namespace {

constexpr int kPollMs = 100;
constexpr double kHeartbeatEvery = 0.25;  // seconds between two looks
constexpr double kTellEvery = 1;          // a rank that was just starting has missed the first signal
constexpr double kGrace = 4;              // mpirun kills its ranks 2 s after SIGINT
constexpr double kSuspended = 5;          // a look this late: this process or the machine was suspended

// "T": stopped, "D": waiting for a device, "R": computing; empty when it is gone.
std::string process_state(int pid) {
  std::ifstream in(str_cat("/proc/", pid, "/stat"));
  std::string text;
  std::getline(in, text);
  const size_t at = text.rfind(')');
  return at == std::string::npos || at + 2 >= text.size() ? "" : text.substr(at + 2, 1);
}

// Whether the ranks of this host make progress. Those of others are coupled to them by every collective, and
// their files may arrive late through a network file system.
class ProgressWatch {
 public:
  ProgressWatch(const ExperimentConfig& config, int ranks, uint64_t launch_id)
      : config_(config),
        ranks_(ranks),
        launch_id_(launch_id),
        begin_(now()),
        start_(begin_),
        looked_(begin_) {}

  // What hangs; empty while nothing does.
  std::string look(JobEnd& end) {
    const double t = now();
    if (t - looked_ < kHeartbeatEvery) return "";
    if (t - looked_ > kSuspended) {
      for (auto& [rank, seen] : seen_) seen.at += t - looked_;
      start_ += t - looked_;
    }
    looked_ = t;
    end.heartbeats = read_heartbeats(config_.run_dir, ranks_, launch_id_);
    if (end.heartbeats.empty()) {
      if (t - start_ < config_.recovery.setup_limit) return "";
      return str_cat("no rank has come to its set-up within ", config_.recovery.setup_limit, " s");
    }
    const std::string host = host_name();
    std::string late;
    for (const Heartbeat& h : end.heartbeats) {
      if (h.section != Section::kSetup && end.first_step_at < 0) end.first_step_at = t - begin_;
      const auto [entry, is_new] = seen_.try_emplace(h.rank, Seen{h.count, t});
      Seen& seen = entry->second;
      if (is_new || seen.count != h.count) {
        seen = {h.count, t};
        end.progress_at = t - begin_;
      }
      if (h.host != host || t - seen.at <= h.limit) continue;
      late = str_cat("no progress in section ", section_name(h.section), " after step ", h.step, " for ",
                     h.limit, " s");
    }
    if (late.empty()) return "";
    for (const Heartbeat& h : end.heartbeats) {
      const std::string state = h.host == host ? process_state(h.pid) : "";
      if (state == "T") late += str_cat("; rank ", h.rank, " (pid ", h.pid, ") is stopped");
      if (state == "D") late += str_cat("; rank ", h.rank, " (pid ", h.pid, ") waits for a device");
    }
    return late;
  }

 private:
  struct Seen {
    uint64_t count;
    double at;
  };
  const ExperimentConfig& config_;
  int ranks_;
  uint64_t launch_id_;
  const double begin_;
  double start_, looked_;  // without the time in which we were suspended
  std::map<int, Seen> seen_;
};

void set_status(int status, JobEnd& end) {
  if (WIFSIGNALED(status)) {
    end.code = 128 + WTERMSIG(status);
    end.status = str_cat("mpirun was killed by signal ", WTERMSIG(status));
  } else {
    end.code = WEXITSTATUS(status);
    end.status = str_cat("exit code ", end.code);
    if (end.code > 128 && end.code < 128 + 65)
      end.status += str_cat(" (signal ", end.code - 128, ", ", strsignal(end.code - 128), ")");
  }
}

}  // namespace

std::vector<std::string> mpirun_command(const LaunchOptions& options, const Placement& placement,
                                        uint64_t launch_id, const LaunchMark& mark) {
  std::vector<std::string> c{"mpirun", "-np", str_cat(placement.ranks), "--bind-to", "none", "--tag-output"};
  const auto mca = [&c](const std::string& name, const std::string& value) {
    c.insert(c.end(), {"--mca", name, value});
  };
  if (::geteuid() == 0) c.emplace_back("--allow-run-as-root");
  if (!options.hostfile.empty()) {
    c.insert(c.end(), {"--hostfile", mark.hostfile()});
  } else if (options.slurm_nodes == 0) {
    c.emplace_back("--oversubscribe");  // its slots are whole cores; binding is the ranks' own
  }
  mca("orte_tmpdir_base", mark.session_directory());
  // Each rank makes it on its host before MPI starts; what mpirun's death leaves in it goes with it.
  mca("btl_vader_backing_directory", mark.shared_memory_directory());
  const bool one_host =
      options.slurm_nodes <= 1 && std::all_of(placement.hosts.begin(), placement.hosts.end(),
                                              [](const Host& h) { return is_this_host(h.name); });
  if (one_host) {
    mca("btl", "self,vader");  // and no port that others could reach
    mca("oob_tcp_if_include", "lo");
  } else {
    // A host that is cut off is otherwise noticed after minutes.
    mca("oob_tcp_keepalive_time", "3");
    mca("oob_tcp_keepalive_intvl", "1");
    mca("oob_tcp_keepalive_probes", "3");
    c.insert(c.end(), {"-x", "PESC_LAUNCH"});
  }
  if (options.slurm_nodes > 1)
    mca("orte_launch_agent",
        str_cat(options.program, " launch --daemon ", mark.session_directory(), " orted"));
  c.push_back(options.program);
  c.insert(c.end(), options.train_argv.begin(), options.train_argv.end());
  if (placement.smaller) c.insert(c.end(), {"--set", str_cat("parallel.ep=", placement.ep)});
  c.insert(c.end(), {"--launch_id", str_cat(launch_id)});
  return c;
}

JobEnd run_job(const LaunchOptions& options, const Placement& placement, const ExperimentConfig& config,
               uint64_t launch_id, const LaunchMark& mark, StopSignals& signals) {
  JobEnd end;
  OutputPipe out(stdout), err(stderr);
  const double begin = now();
  const pid_t mpirun = start_process(mpirun_command(options, placement, launch_id, mark), mark.environment(),
                                     out.write_end(), err.write_end());
  out.close_write();
  err.close_write();
  ProgressWatch progress(config, placement.ranks, launch_id);
  double told = -1, first_told = -1, ended_at = -1;
  bool all_told = false;
  const auto end_job = [&] {
    if (ended_at >= 0) return;
    ended_at = now();
    ::kill(mpirun, SIGINT);
  };
  int status = 0;
  while (::waitpid(mpirun, &status, WNOHANG) == 0) {
    pollfd fds[] = {{signals.fd(), POLLIN, 0}, {out.read_end(), POLLIN, 0}, {err.read_end(), POLLIN, 0}};
    ::poll(fds, 3, kPollMs);
    signals.read();
    out.take();
    err.take();
    const double t = now();
    if (signals.requests() > 0 && ended_at < 0) {
      const bool first = first_told < 0;
      if (first) first_told = t;
      if (!all_told && t - told >= kTellEvery) {
        told = t;
        const std::vector<Heartbeat> ranks = read_heartbeats(config.run_dir, placement.ranks, launch_id);
        tell_ranks(mpirun, ranks, mark);
        all_told = std::ssize(ranks) == placement.ranks;  // they catch it since before their first heartbeat
      }
      if (first) std::fprintf(stderr, "pesc launch: told to stop; the ranks save\n");
      if (t - first_told > config.recovery.stop_limit) {
        end.hang = str_cat("told to stop, the ranks have not ended within ", config.recovery.stop_limit,
                           " s (recovery.stop_limit_s)");
        end.noticed_at = t - begin;
      }
      if (signals.requests() > 1 || !end.hang.empty()) {
        std::fprintf(stderr, "pesc launch: ending the ranks now\n");
        end_job();
      }
    }
    if (end.hang.empty() && ended_at < 0) {
      end.hang = progress.look(end);
      if (!end.hang.empty()) {
        end.noticed_at = now() - begin;
        std::fprintf(stderr, "pesc launch: launch %llu hangs: %s\n",
                     static_cast<unsigned long long>(launch_id), end.hang.c_str());
        end_job();
      }
    }
    if (ended_at >= 0 && t - ended_at > kGrace) ::kill(mpirun, SIGKILL);
  }
  if (end.hang.empty()) end.noticed_at = now() - begin;
  out.finish();
  err.finish();
  end.last_lines = err.filter().last_lines();
  set_status(status, end);
  end.seconds = now() - begin;
  end.ended_unix = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  end.heartbeats = read_heartbeats(config.run_dir, placement.ranks, launch_id);
  // A launch of few and quick steps may come to them and end between two looks.
  if (end.first_step_at < 0 && std::any_of(end.heartbeats.begin(), end.heartbeats.end(),
                                           [](const Heartbeat& h) { return h.section != Section::kSetup; }))
    end.first_step_at = end.seconds;
  end.deaths = read_deaths(config.run_dir, placement.ranks, launch_id);
  if (!end.hang.empty()) {
    end.code = static_cast<int>(ExitCode::kHang);
    end.status = "ended for hanging";
  } else if (ended_at >= 0 && end.code != 0 && end.code != static_cast<int>(ExitCode::kPreempted)) {
    // mpirun itself says 1.
    end.code = 128 + SIGINT;
    end.status = "ended by a second signal";
  } else if (end.code != 0 && end.code < 64 && !end.deaths.empty()) {
    end.code = end.deaths.front().exit_code;  // mpirun says 1 when ranks end with different codes
  }
  return end;
}

}  // namespace pesc
