// The words of a `pesc` command: one verb, a few flags; everything else belongs in the experiment file.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "runtime/config/experiment.h"
#include "runtime/ranks.h"
#include "runtime/recovery/rank_watch.h"

namespace pesc {

struct CommandLine {
  std::string verb;
  std::string config;                  // --config FILE
  std::vector<std::string> overrides;  // --set path.to.field=value, any number of times
  std::string checkpoint;  // --checkpoint DIR: a step-N folder or "best"; the newest of run_dir by default
  std::string against;     // --against DIR: the checkpoint to compare with
  bool verify = false;     // --verify: read every byte
  bool base = false;       // --base: the dense model without its checkpoint
  std::string out;         // --out PATH
  std::vector<std::string> runs;  // --run DIR, any number of times
  std::string format;             // --format HF, PEFT or CAMELIDAE; HF by default
  std::string dtype;              // --dtype BF16 or F32
  std::string merge_into;         // --merge_into ORIGINAL or DEQUANTISED
  std::string prompt;             // --prompt TEXT
  std::string system;             // --system TEXT
  std::string prompts;            // --prompts FILE of rows
  bool chat = false;              // --chat: a conversation with standard input
  int samples = 0;                // --samples N answers to show
  int steps = 20;                 // --steps N to time
  std::optional<int> shortest;    // --shortest T tokens of a random row to time; absent: full rows
  std::string shape;              // --shape S instead of the experiment's model and data
  int ranks = 1;                  // --ranks N to plan for
  std::string gpu;                // --gpu NAME to plan for
  double gemm_tflops = 0, memory_gbs = 0, link_gbs = 0, device_gib = 0;  // of a rank; 0: the GPU's
  std::string model;           // --model FOLDER whose tokenizer is used
  bool special = false;        // --special: with the tokens that the post-processor adds
  bool show = false;           // --show: tokens as text for people
  int show_rows = 0;           // --show_rows N: of the run's first rows
  uint64_t launch_id = 0;      // --launch_id N: the number of the launch, given by `pesc launch`
  std::string dir;             // --dir FOLDER to look at
  bool json = false;           // --json: for a program
  std::string topic;           // the word behind `help` and `completion`
  bool scaling = false;        // --scaling: the points of launcher/bench_scaling.h
  std::string scaling_points;  // --scaling_points REGEX, which selects some of them
  std::optional<int> hosts;    // --hosts H to plan for
  int gpus_per_host = 8;       // --gpus_per_host G
  double network_gbit_per_gpu = 400, storage_gbs = 1;
  double gpu_mtbf_hours = 50000;  // --gpu_mtbf_hours: of one GPU and its part of the host
};

// Parses argv with gflags; --help anywhere makes it `help` with the verb as topic. Throws UsageError for an
// unknown verb or flag, naming the nearest.
[[nodiscard]] CommandLine parse_command_line(int argc, char** argv);
// The command where it is one that runs alone, without ranks and MPI: help, doctor and the like, also the help
// of `launch`. Nothing for all others, and where the words are wrong, which the ranks say together.
[[nodiscard]] std::optional<CommandLine> parse_alone(int argc, char** argv);

// What a verb needs of the process it runs in.
struct Process {
  Communicator& world;
  int local_rank;
  int local_size;
  RankWatch& watch;
  const HostCores& cores;
};

// The verbs (launcher/verbs.cc). Each runs on every rank and returns the exit code.
int run_train(const Process& process, const CommandLine& command);
// From here on SIGTERM and SIGUSR1 ask run_train to save at the next step and end with 75.
void save_and_stop_on_signals();
int run_eval(const Process& process, const CommandLine& command);
int run_generate(const Process& process, const CommandLine& command);
int run_export(const Process& process, const CommandLine& command);
int run_report(const Process& process, const CommandLine& command);
int run_bench(const Process& process, const CommandLine& command);  // --scaling: launcher/bench_scaling.h
int run_plan(const Process& process, const CommandLine& command);
int run_inspect(const Process& process, const CommandLine& command);
int run_tokenize(const Process& process, const CommandLine& command);
// Alone.
int run_doctor(const CommandLine& command);
int run_completion(const CommandLine& command);
int run_help(const CommandLine& command);

// Reads the experiment on all ranks and places the rank on its host. Collective.
[[nodiscard]] ExperimentConfig read_experiment(const Process& process, const CommandLine& command);
[[nodiscard]] HostPlacement place(const Process& process, const ExperimentConfig& config);

}  // namespace pesc
