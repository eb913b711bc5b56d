#include "launcher/launch_options.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "launcher/help.h"
#include "launcher/launch_checks.h"
#include "launcher/launch_hostfile.h"
#include "launcher/launch_process.h"
#include "launcher/launch_slurm.h"
#include "ops/core/check.h"
#include "runtime/recovery/rank_files.h"

namespace pesc {
namespace {

const char* variable(const char* name) {
  return std::getenv(name);
}

}  // namespace

LaunchOptions parse_launch(int argc, char** argv) {
  check_not_inside_a_launch(variable);
  LaunchOptions o;
  // Now: once the file has been replaced by a newer build, the link says "(deleted)".
  o.program = std::filesystem::read_symlink("/proc/self/exe");
  int i = 2;
  for (; i < argc && std::string(argv[i]) != "--"; ++i) {
    const std::string flag = argv[i];
    if (flag != "-n" && flag != "--hostfile")
      throw UsageError(str_cat("pesc launch: unknown argument '", flag,
                               "'; the training command stands after --", see_help("launch")));
    if (i + 1 >= argc) throw UsageError(str_cat("pesc launch: ", flag, " needs a value"));
    const std::string value = argv[++i];
    if (flag == "--hostfile" ? !o.hostfile.empty() : o.ranks > 0)
      throw UsageError(str_cat("pesc launch: ", flag, " is given twice; leave one out"));
    if (flag == "--hostfile") {
      o.hostfile = value;
      continue;
    }
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), o.ranks);
    if (error != std::errc() || end != value.data() + value.size() || o.ranks < 1)
      throw UsageError(
          str_cat("pesc launch: -n ", value, " is no number of ranks; write a whole number from 1"));
  }
  // Inside a Slurm allocation it says how many nodes and, unless -n does, how many ranks.
  const SlurmJob job = read_slurm_job(variable, host_name(), ask_squeue);
  check_one_copy(job);
  o.slurm_nodes = job.nodes;
  if (o.ranks < 1) o.ranks = job.tasks;
  if (job.nodes > 0 && o.ranks > job.slots) {
    throw UsageError(str_cat(
        "-n ", o.ranks, " is more than the ", job.slots,
        " tasks of the Slurm job (SLURM_TASKS_PER_NODE); ask Slurm for more tasks (--ntasks), or start "
        "fewer ranks; in a shell that belongs to no job, unset Slurm's variables"));
  }
  std::string ignored;
  if (!job.left_over.empty()) {
    ignored = str_cat("this is not in the Slurm job of ", job.left_over, "; Slurm's variables are ignored");
    forget_slurm();  // mpirun would believe them
  }
  if (o.ranks < 1) {
    throw UsageError(str_cat("pesc launch needs -n N, the number of ranks",
                             ignored.empty() ? "" : "; " + ignored, see_help("launch")));
  }
  if (!ignored.empty()) std::fprintf(stderr, "pesc launch: %s\n", ignored.c_str());
  if (const std::string why = left_over_grid_engine(variable, host_name()); !why.empty()) {
    std::fprintf(stderr, "pesc launch: this is no job of Grid Engine: %s; its variables are ignored\n",
                 why.c_str());
    ::unsetenv("PE_HOSTFILE");  // without it mpirun looks at none of them
  }
  if (i + 1 >= argc || std::string(argv[i + 1]) != "train")
    throw UsageError(str_cat("pesc launch supervises `train`; write pesc launch -n N -- train --config FILE",
                             see_help("launch")));
  if (!o.hostfile.empty()) {
    o.hosts = read_hostfile(o.hostfile);
    check_slots(o.hostfile, o.hosts, o.ranks);
  }
  if (o.slurm_nodes > 1 && !is_in_path("srun")) {
    throw UsageError(
        str_cat("srun is not in PATH, through which mpirun starts ranks on the ", o.slurm_nodes,
                " nodes of the Slurm allocation; start it where Slurm's commands are installed"));
  }
  o.train_argv.assign(argv + i + 1, argv + argc);
  std::vector<std::string> words{argv[0]};
  words.insert(words.end(), o.train_argv.begin(), o.train_argv.end());
  std::vector<char*> pointers;
  for (std::string& w : words) pointers.push_back(w.data());
  o.train = parse_command_line(static_cast<int>(pointers.size()), pointers.data());
  if (o.train.config.empty()) throw UsageError(str_cat("pesc train needs --config FILE", see_help("train")));
  if (o.train.launch_id != 0)
    throw UsageError("pesc launch numbers its launches itself; leave --launch_id out");
  return o;
}

int ranks_of_this_host(const LaunchOptions& o) {
  if (o.hostfile.empty()) return o.slurm_nodes > 1 ? (o.ranks + o.slurm_nodes - 1) / o.slurm_nodes : o.ranks;
  int64_t ranks = 0;
  for (const Host& h : o.hosts) {
    if (is_this_host(h.name)) ranks += h.slots > 0 ? h.slots : o.ranks;
  }
  return static_cast<int>(std::min<int64_t>(ranks, o.ranks));
}

}  // namespace pesc
