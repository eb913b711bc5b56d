#include "launcher/command_line.h"

#include <gflags/gflags.h>

#include <algorithm>
#include <array>

#include "ops/core/check.h"
#include "runtime/config/shapes.h"
#include "runtime/config/text_parser.h"

DEFINE_string(config, "", "experiment file (protobuf text, configs/schema/experiment.proto)");
DEFINE_string(checkpoint, "", "a step-N folder; by default the newest of the experiment's run_dir");
DEFINE_string(against, "", "a second checkpoint, with which inspect compares the first");
DEFINE_bool(verify, false, "inspect reads and checks every byte");
DEFINE_bool(base, false, "the dense base model, without any checkpoint");
DEFINE_string(out, "", "where to write: a folder for export, a JSON file for eval");
DEFINE_string(prompt, "", "text to answer");
DEFINE_string(system, "", "system text of --prompt");
DEFINE_string(prompts, "", "file of rows whose last answers to generate");
DEFINE_int32(samples, 0, "answers that eval shows");
DEFINE_int32(steps, 20, "steps that bench times");
DEFINE_int32(shortest, 0, "bench: random rows have this many tokens to train.seq_len; 0: all are full");
DEFINE_string(shape, "", "bench and plan: a model without its files");
DEFINE_int32(ranks, 1, "plan: ranks of the job");
DEFINE_string(gpu, "", "plan: the GPU of each rank, by name");
DEFINE_double(gemm_tflops, 0, "plan: rate of a rank's matrix products, TFLOP/s");
DEFINE_double(memory_gbs, 0, "plan: rate of a rank's device memory, GB/s");
DEFINE_double(link_gbs, 0, "plan: rate at which a rank sends, GB/s");
DEFINE_double(device_gib, 0, "plan: memory of a rank's device, GiB");
DEFINE_uint64(generation, 0, "number of the launch; `pesc launch` gives it to its ranks");

namespace pesc {
namespace {

constexpr std::array kVerbs{"train", "eval", "generate", "export", "bench", "plan", "inspect", "help"};
constexpr std::array kFlags{"config",     "checkpoint", "base",       "out",      "prompt", "system",
                            "prompts",    "samples",    "steps",      "shortest", "set",    "help",
                            "against",    "verify",     "generation", "shape",    "ranks",  "gemm_tflops",
                            "memory_gbs", "link_gbs",   "device_gib", "gpu"};

template <class List>
std::string nearest_of(const std::string& name, const List& list) {
  return nearest_name(name, std::vector<std::string>(list.begin(), list.end()));
}

// Takes "--name=value", "--name value" or, of a boolean, "--name" and "--noname" at argv[i], and moves i over
// it. gflags itself ends the program at a mistake; here it is an error like others.
void take_flag(int argc, char** argv, int& i, CommandLine& c) {
  const std::string argument = argv[i];
  const size_t begin = argument.find_first_not_of('-');
  if (begin == std::string::npos)
    throw UsageError(str_cat("unexpected argument '", argument, "'\n", usage()));
  const size_t equals = argument.find('=', begin);
  std::string name = argument.substr(begin, equals == std::string::npos ? equals : equals - begin);
  std::string value = equals == std::string::npos ? "" : argument.substr(equals + 1);
  const auto known = [](const std::string& n) {
    return std::find(kFlags.begin(), kFlags.end(), n) != kFlags.end();
  };
  gflags::CommandLineFlagInfo info;
  if (!known(name) && name.starts_with("no") && known(name.substr(2)) &&
      gflags::GetCommandLineFlagInfo(name.substr(2).c_str(), &info) && info.type == "bool" && value.empty()) {
    name = name.substr(2);
    value = "false";
  }
  if (!known(name)) {
    throw UsageError(str_cat("unknown flag --", name, "; did you mean --", nearest_of(name, kFlags),
                             "? Fields of the experiment are set with --set path.to.field=value\n", usage()));
  }
  const bool boolean = gflags::GetCommandLineFlagInfo(name.c_str(), &info) && info.type == "bool";
  if (boolean && value.empty()) value = "true";
  if (equals == std::string::npos && !boolean) {
    if (i + 1 >= argc) throw UsageError(str_cat("--", name, " needs a value"));
    value = argv[++i];
  }
  if (name == "set") {
    c.overrides.push_back(value);
  } else if (gflags::SetCommandLineOption(name.c_str(), value.c_str()).empty()) {
    throw UsageError(str_cat("--", name, ": '", value, "' is not a value of type ", info.type));
  }
}

}  // namespace

std::string usage() {
  return "usage: pesc VERB --config FILE [--set path.to.field=value ...] [flags]\n"
         "  train                              tune on the ranks that mpirun or srun started; resumes by "
         "itself\n"
         "  launch -n N [--hostfile H] -- train --config FILE ...\n"
         "                                     starts N ranks of train, watches them, restarts after a "
         "fault\n"
         "  eval     [--base] [--samples N] [--out FILE.json]\n"
         "                                     held-out loss, exact match and experts per dataset tag\n"
         "  generate --prompt TEXT [--system TEXT] | --prompts FILE   [--base]\n"
         "  export   --out FOLDER              a train.mode FULL run as a Hugging Face folder\n"
         "  bench    [--shape S] [--steps N] [--shortest T] [--out FILE.json]\n"
         "                                     times the training step against the speed of light\n"
         "  plan     [--shape S] [--ranks N] [--out FILE.json] [--gpu NAME] [--device_gib G] [--gemm_tflops "
         "T] "
         "[--memory_gbs M] [--link_gbs L]\n"
         "                                     memory, arithmetic, exchange and time of a run, and whether "
         "it "
         "fits,\n"
         "                                     without the device. S: a folder with config.json, a name of "
         "configs/models, 7B, 13B,\n"
         "                                     34B, 70B. NAME: A100-40, A100-80, H100-80, H200-141, "
         "B200-180\n"
         "  inspect  --checkpoint DIR [--verify] [--against DIR2]\n"
         "                                     what a checkpoint holds; checks every byte; compares two "
         "(ends with "
         "1 where they differ);\n"
         "                                     a run directory as DIR: all its checkpoints, checked. No "
         "--config.\n"
         "Common: --checkpoint DIR (a step-N folder; by default the newest of run_dir).\n";
}

CommandLine parse_command_line(int argc, char** argv) {
  CommandLine c;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--help" || argument == "-h") {
      c.verb = "help";
      return c;
    }
    if (argument.starts_with("-")) {
      take_flag(argc, argv, i, c);
    } else if (c.verb.empty()) {
      c.verb = argument;
    } else {
      throw UsageError(str_cat("unexpected argument '", argument, "'\n", usage()));
    }
  }
  if (c.verb.empty()) throw UsageError(usage());
  if (std::find(kVerbs.begin(), kVerbs.end(), c.verb) == kVerbs.end()) {
    throw UsageError(
        str_cat("unknown verb '", c.verb, "'; did you mean '", nearest_of(c.verb, kVerbs), "'?\n", usage()));
  }
  c.config = FLAGS_config;
  c.checkpoint = FLAGS_checkpoint;
  c.against = FLAGS_against;
  c.verify = FLAGS_verify;
  c.base = FLAGS_base;
  c.out = FLAGS_out;
  c.prompt = FLAGS_prompt;
  c.system = FLAGS_system;
  c.prompts = FLAGS_prompts;
  c.samples = FLAGS_samples;
  c.steps = FLAGS_steps;
  c.shortest = FLAGS_shortest;
  c.shape = FLAGS_shape;
  c.ranks = FLAGS_ranks;
  c.gpu = FLAGS_gpu;
  c.gemm_tflops = FLAGS_gemm_tflops;
  c.memory_gbs = FLAGS_memory_gbs;
  c.link_gbs = FLAGS_link_gbs;
  c.device_gib = FLAGS_device_gib;
  c.generation = FLAGS_generation;
  return c;
}

ExperimentConfig read_experiment(const Process& process, const CommandLine& command) {
  ExperimentConfig config;
  together(process.world, [&] {
    if (command.config.empty())
      throw UsageError(str_cat("pesc ", command.verb, " needs --config FILE\n", usage()));
    const bool runs = command.verb != "bench" && command.verb != "plan";
    if (runs && !command.shape.empty())
      throw UsageError(str_cat("--shape is for bench and plan; pesc ", command.verb, " needs a model"));
    config = load_experiment(command.config, command.overrides,
                             runs ? ExperimentUse::kRun : ExperimentUse::kBench);
    if (command.shape.empty()) return;
    config.model.shape = load_shape(command.shape);
    config.model.path.clear();
    config.model.tokenizer.clear();
    config.data.train.clear();
    config.data.eval.clear();
  });
  return config;
}

HostPlacement place(const Process& process, const ExperimentConfig& config) {
  return place_rank_on_host(process.local_rank, process.local_size, config.parallel.threads);
}

}  // namespace pesc
