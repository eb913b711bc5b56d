#include "launcher/launch.h"

#include <poll.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "launcher/launch_checks.h"
#include "launcher/launch_hostfile.h"
#include "launcher/launch_hosts.h"
#include "launcher/launch_job.h"
#include "launcher/launch_mark.h"
#include "launcher/launch_options.h"
#include "launcher/launch_process.h"
#include "launcher/launch_progress.h"
#include "launcher/launch_report.h"
#include "runtime/checkpoint/run_lock.h"
#include "runtime/clock.h"

extern char** environ;

namespace pesc {
namespace {

bool restartable(int code) {
  return code != static_cast<int>(ExitCode::kUsage) && code != static_cast<int>(ExitCode::kData);
}

class Supervisor {
 public:
  Supervisor(const LaunchOptions& options, const ExperimentConfig& config)
      : options_(options),
        config_(config),
        hosts_(options.hosts),
        lock_(RunLock::acquire(config.run_dir)),
        signals_(options.slurm_nodes > 0 ? StopSignals::Under::kSlurm : StopSignals::Under::kNothing),
        begin_(now()),
        first_step_(std::max<int64_t>(0, newest_checkpoint(config.run_dir))) {}

  int run() {
    try {
      const int code = supervise();
      if (!restartable(code)) take_back();
      return code;
    } catch (const Error&) {
      take_back();
      throw;
    }
  }

 private:
  int supervise() {
    int64_t fruitless = 0;
    double stood_since =
        -1;  // the last sign of progress before the failure from which there is no recovery yet
    for (const std::string& note : LaunchMark(config_.run_dir, lock_.launch_id()).remove_leftovers())
      say("left over from an earlier launch: " + note);
    check_room(temporary_folder(), kSharedMemoryFolder, ranks_of_this_host(options_));
    if (config_.checkpoint.save_steps == 0)
      say("checkpoint.save_steps is 0: only the end is saved, and after a fault all steps are done again");
    look();
    for (;;) {
      const std::optional<Placement> placement = wait_for_hosts();
      if (!placement) return stopped(newest_checkpoint(config_.run_dir));
      const LaunchMark mark(config_.run_dir, lock_.launch_id());
      mark.make_directories();
      announce(*placement, mark);
      const double started = now();
      const int64_t from = std::max<int64_t>(0, newest_checkpoint(config_.run_dir));
      JobEnd end = run_job(options_, *placement, config_, lock_.launch_id(), mark, signals_);
      static_cast<void>(mark.remove_leftovers());
      claimed_ = claimed_ || has_begun(config_.run_dir + "/metrics.jsonl", lock_.launch_id());
      if (stood_since >= 0 && end.first_step_at >= 0) {
        restart_seconds_.push_back(started + end.first_step_at - stood_since);
        stood_since = -1;
      }
      look();
      if (progress_.launch_ended(config_.run_dir, lock_.launch_id())) {
        fruitless = 0;
        host_health_.forget();
        repeats_.forget();
      }
      const bool other_hosts = host_health_.launch_ended(hosts_of_the_dead(end), hosts_);
      const bool repeated = repeats_.launch_ended(end) && !other_hosts;
      const bool same_start = starts_.launch_ended(end) && !other_hosts;
      record(end, *placement, from);
      if (end.code == 0) return 0;
      if (!restartable(end.code)) {
        std::fputs(report_of(end, lock_.launch_id()).c_str(), stderr);
        say(str_cat("exit code ", end.code,
                    " is of a mistake that a restart does not mend; the job is not started again"));
        return end.code;
      }
      const int64_t newest = newest_checkpoint(config_.run_dir);
      // Slurm's signals may have come to the ranks alone.
      if (end.code == static_cast<int>(ExitCode::kPreempted) &&
          (signals_.requests() > 0 || options_.slurm_nodes > 0))
        return stopped(newest);
      std::fputs(report_of(end, lock_.launch_id()).c_str(), stderr);
      if (signals_.requests() > 0) {
        const bool saved = newest >= 0 && newest >= last_step(end);
        say(str_cat(saved ? "stopped" : "STOPPED WITHOUT SAVING", ", exit code ", end.code, "; ",
                    checkpoint_text(newest)));
        return end.code;  // 75 would promise that nothing is lost
      }
      begun_ = begun_ || ranks_began(end);
      if (!begun_ && unreachable_hosts(hosts_).empty()) {
        say("mpirun has ended before any rank began, and a restart would not change that; what it said is "
            "above. The job is not started again; " +
            advice_on_mpi(environ));
        return static_cast<int>(ExitCode::kUsage);
      }
      if (same_start && unreachable_hosts(hosts_).empty()) {
        say(str_cat(
            "two launches in a row have ended alike, with exit code ", end.code,
            ", before any rank had begun its set-up. A restart would not change that; what MPI said is "
            "above. The job is not started again; ",
            advice_on_mpi(environ)));
        return static_cast<int>(ExitCode::kUsage);
      }
      if (repeated) {
        say(str_cat(repeats_.text(),
                    " in two launches in a row without a new checkpoint. A restart would not change that; "
                    "the job is not started again (",
                    checkpoint_text(newest), ")"));
        return end.code;
      }
      if (++fruitless > config_.recovery.max_restarts) {
        say(str_cat("giving up: ", fruitless, " launches failed without a new checkpoint (",
                    checkpoint_text(newest), ")"));
        return end.code;
      }
      if (stood_since < 0) stood_since = started + end.progress_at;
      const double pause =
          std::min(config_.recovery.longest_pause, std::pow(2.0, static_cast<double>(fruitless - 1)));
      say(str_cat("starting again in ", pause, " s (", fruitless, " of ", config_.recovery.max_restarts,
                  " restarts without a new checkpoint; ", checkpoint_text(newest), ")"));
      if (stop_comes_within(pause)) return stopped(newest);
      if (!lock_.still_ours())
        throw UsageError(
            str_cat("run directory '", config_.run_dir,
                    "' has been taken by another launch; wait for it, stop it, or give another directory"));
      lock_.next_launch_id();
      ++restarts_;
    }
  }

  // A refused start leaves the directory of a run as it was. One that is new keeps the record of why.
  void take_back() {
    if (claimed_ || !lock_.was_in_use()) return;
    for (const std::string& line : lock_.take_back()) say(line);
  }

  static void say(const std::string& text) { std::fprintf(stderr, "pesc launch: %s\n", text.c_str()); }
  static std::string checkpoint_text(int64_t newest) {
    return newest < 0 ? "there is no checkpoint yet" : str_cat("the newest checkpoint is step ", newest);
  }

  // Who answers; also cleans up there. Says who does not.
  void look() {
    const LaunchMark mark(config_.run_dir, lock_.launch_id());
    for (const std::string& note : look_at_hosts(hosts_, options_.program, config_.run_dir, mark))
      say("left over on " + note);
    // Once told to stop, Slurm starts nothing more here, and cleans up itself.
    if (options_.slurm_nodes > 1 && hosts_.empty() && signals_.requests() == 0) {
      for (const std::string& note :
           clean_allocation(options_.slurm_nodes, options_.program, config_.run_dir, mark))
        say("left over on " + note);
    }
    static_cast<void>(mark.remove_leftovers());  // of the question itself
    const std::string unreachable = unreachable_hosts(hosts_);
    if (!unreachable.empty()) say("NO ANSWER from host " + unreachable);
  }

  // Where the next launch goes; nothing when it is told to stop while it waits. Throws IoError.
  std::optional<Placement> wait_for_hosts() {
    const double until = now() + config_.recovery.host_wait;
    double pause = std::min(1.0, config_.recovery.longest_pause);
    for (;;) {
      if (auto placement = place_ranks(hosts_, options_.ranks, config_)) return placement;
      const std::string unreachable = unreachable_hosts(hosts_);
      if (now() >= until) {
        throw IoError(
            str_cat("host ", unreachable, " has not answered for ", config_.recovery.host_wait,
                    " s (recovery.host_wait_s), and the others cannot take its ranks; take it out of ",
                    options_.hostfile, ", or set recovery.smaller_layout"));
      }
      say(str_cat("cannot go on without host ", unreachable, "; asking again in ", pause, " s"));
      if (stop_comes_within(pause)) return std::nullopt;
      pause = std::min(config_.recovery.longest_pause, 2 * pause);
      look();
    }
  }

  // The hosts of this launch: to the user and to mpirun.
  void announce(const Placement& p, const LaunchMark& mark) const {
    if (hosts_.empty()) return;
    std::ofstream out(mark.hostfile());
    out << hostfile_text(p.hosts);
    if (!out.flush()) throw IoError(mark.hostfile() + " cannot be written");
    if (p.left_out.empty()) return;
    say(str_cat(p.smaller ? "GOING ON WITH A SMALLER LAYOUT: " : "GOING ON WITH SPARE HOSTS: ", p.ranks,
                " of ", options_.ranks, " ranks on ", names_of(p.hosts), ", tp ", config_.parallel.tp,
                ", ep ", p.ep, ", dp ", p.ranks / config_.parallel.tp,
                "; left out: ", why_left_out(hosts_, p.left_out)));
  }

  bool stop_comes_within(double seconds) {
    for (const double until = now() + seconds; now() < until && signals_.requests() == 0;) {
      pollfd fd{signals_.fd(), POLLIN, 0};
      ::poll(&fd, 1, 100);
      signals_.read();
    }
    return signals_.requests() > 0;
  }

  static int stopped(int64_t newest) {
    say(str_cat("stopped; ", checkpoint_text(newest), "; start it again to go on"));
    return static_cast<int>(ExitCode::kPreempted);
  }

  // Seconds in steps that count over all seconds since this supervisor started: into the record of the launch
  // that came to the end, and to the user.
  void add_goodput(nlohmann::json& j) const {
    const double wall = now() - begin_;
    const double useful = seconds_that_count(config_.run_dir + "/metrics.jsonl", first_step_);
    const double slowest =
        restart_seconds_.empty() ? 0 : *std::max_element(restart_seconds_.begin(), restart_seconds_.end());
    const double goodput = wall > 0 ? useful / wall : 0;
    j["restarts"] = restarts_;
    j["restart_seconds"] = restart_seconds_;
    j["wall_seconds"] = wall;
    j["goodput"] = goodput;
    char text[200];
    std::snprintf(
        text, sizeof(text),
        "done in %.1f s with %lld restarts (the longest took %.1f s); goodput %.2f: seconds in steps "
        "that count over all seconds",
        wall, static_cast<long long>(restarts_), slowest, goodput);
    say(text);
  }

  // The story of the run, one line a launch, in launches.jsonl, which the supervisor alone writes.
  void record(const JobEnd& end, const Placement& placement, int64_t from) const {
    nlohmann::json j =
        record_of(end, placement, hosts_, lock_.launch_id(), newest_checkpoint(config_.run_dir));
    j["from_step"] = from;
    if (end.code == 0) add_goodput(j);
    std::ofstream out(config_.run_dir + "/launches.jsonl", std::ios::app);
    out << j.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
    if (!out.flush()) say(config_.run_dir + "/launches.jsonl cannot be written");
  }

  const LaunchOptions& options_;
  const ExperimentConfig& config_;
  std::vector<Host> hosts_;  // of the hostfile
  RunLock lock_;
  StopSignals signals_;
  double begin_;
  int64_t first_step_;
  int64_t restarts_ = 0;
  std::vector<double> restart_seconds_;  // each from the last sign of progress to the first step after it
  Progress progress_;
  HostHealth host_health_;
  RepeatedFailure repeats_;
  RepeatedStart starts_;
  bool begun_ = false;    // a rank of a launch of ours
  bool claimed_ = false;  // a launch of ours was not refused
};

}  // namespace

int run_launch(int argc, char** argv) {
  try {
    if (argc == 6 && std::string(argv[2]) == "--check-host") return check_host(argv[3], argv[4], argv[5]);
    if (argc >= 5 && std::string(argv[2]) == "--daemon") return run_daemon(argv[3], argv + 4);
    const LaunchOptions options = parse_launch(argc, argv);
    const ExperimentConfig config = load_experiment(options.train.config, options.train.overrides);
    check_paths(config, DataUse::kAll);
    check_mpirun();
    return Supervisor(options, config).run();
  } catch (const Error& e) {
    std::fprintf(stderr, "pesc: %s\n", e.what());
    return static_cast<int>(e.code());
  } catch (const std::exception& e) {
    std::fprintf(stderr, "pesc: internal error: %s\n", e.what());
    return static_cast<int>(ExitCode::kInternal);
  }
}

}  // namespace pesc
