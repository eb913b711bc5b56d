#include "launcher/flags.h"

#include <gflags/gflags.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <map>
#include <optional>
#include <type_traits>

#include "ops/core/check.h"

namespace pesc {
namespace {

using C = CommandLine;

// Name, verbs, value, help, target, least, choices, with. `launch` parses its own two, and hands the rest to `train`.
constexpr std::array kFlags{
    // clang-format off
    Flag{"config", "train eval generate export bench plan", "FILE", "the experiment: protobuf text, configs/schema/experiment.proto", &C::config},
    Flag{"set", "train eval generate export bench plan", "FIELD=VALUE", "one field of the experiment: train.max_steps=20; any number of times", &C::overrides},
    Flag{"checkpoint", "eval generate export inspect", "DIR", "a step-N folder, or `best`: the one with the lowest eval loss (checkpoint.keep_best); by default the newest of the experiment's run_dir. inspect takes a step-N folder or a run directory", &C::checkpoint, 0, "best"},
    Flag{"base", "eval generate", "", "the dense base model, without any checkpoint", &C::base},
    Flag{"out", "eval export report bench plan", "PATH", "where to write: a folder for export, a page of HTML for report, a JSON file for the others, which by default write none", &C::out},
    Flag{"run", "report", "DIR", "the run directory of a run to show; any number of times, to compare runs", &C::runs},
    Flag{"format", "export", "F", "HF (the default): a folder that transformers loads, LoRA merged; PEFT: an adapter folder; CAMELIDAE: as the authors of PESC publish models", &C::format, 0, "HF PEFT CAMELIDAE"},
    Flag{"dtype", "export", "T", "BF16 or F32; by default BF16 where the base's weights are of 16 bits and the format is not PEFT nor the mode FULL, else F32", &C::dtype, 0, "BF16 F32"},
    Flag{"merge_into", "export", "M", "what LoRA of a run on quantised weights (train.frozen_dtype FP8, NF4) is merged into: DEQUANTISED: what these stand for, the model that was trained; ORIGINAL: the base's own weights; required for such a run, and for no other", &C::merge_into, 0, "ORIGINAL DEQUANTISED"},
    Flag{"samples", "eval", "N", "answers to show", &C::samples},
    Flag{"prompt", "generate", "TEXT", "what to answer", &C::prompt},
    Flag{"system", "generate", "TEXT", "system text of --prompt or --chat; none by default", &C::system},
    Flag{"prompts", "generate", "FILE", "rows whose last answers to generate", &C::prompts},
    Flag{"chat", "generate", "", "a conversation: each line of standard input is answered; /reset forgets what was said, /exit ends", &C::chat},
    Flag{"shape", "bench plan", "FOLDER", "a folder with config.json, a name of configs/models, 7B, 13B, 34B, 70B; by default the experiment's model and data", &C::shape, 0, "7B 13B 34B 70B"},
    Flag{"steps", "bench", "N", "steps to time", &C::steps, 1},
    Flag{"shortest", "bench", "T", "random rows of T tokens to data.max_seq_length; by default all are full", &C::shortest, 1},
    Flag{"scaling", "bench", "", "weak and strong scaling over the ranks of this host, for dp, tp and ep; starts mpirun itself, point by point", &C::scaling},
    Flag{"scaling_points", "bench", "REGEX", "the points of --scaling in whose name it is; by default all", &C::scaling_points, 0, {}, "scaling"},
    Flag{"ranks", "plan", "N", "ranks of the job", &C::ranks, 1},
    Flag{"gpu", "plan", "NAME", "the GPU of each rank: A100-40, A100-80, H100-80, H200-141 (the default), B200-180", &C::gpu, 0, "A100-40 A100-80 H100-80 H200-141 B200-180"},
    Flag{"gemm_tflops", "plan", "T", "rate of a rank's GEMMs, TFLOP/s; by default that of --gpu", &C::gemm_tflops, kAboveZero},
    Flag{"memory_gbs", "plan", "M", "rate of a rank's device memory, GB/s; by default that of --gpu", &C::memory_gbs, kAboveZero},
    Flag{"link_gbs", "plan", "L", "rate at which a rank sends, GB/s; by default that of --gpu", &C::link_gbs, kAboveZero},
    Flag{"device_gib", "plan", "G", "memory of a rank's device, GiB; by default that of --gpu, or of this host with parallel.device CPU", &C::device_gib, kAboveZero},
    Flag{"hosts", "plan", "H", "hosts of a cluster, for which to find the best layout, its goodput and how often to save; by default one job of --ranks", &C::hosts, 1},
    Flag{"gpus_per_host", "plan", "G", "GPUs of a host of --hosts", &C::gpus_per_host, 1, {}, "hosts"},
    Flag{"network_gbit_per_gpu", "plan", "N", "rate of a GPU's link to other hosts of --hosts, Gbit/s", &C::network_gbit_per_gpu, kAboveZero, {}, "hosts"},
    Flag{"gpu_mtbf_hours", "plan", "T", "hours that a GPU of --hosts works, with its part of the host, until a failure ends the job", &C::gpu_mtbf_hours, kAboveZero, {}, "hosts"},
    Flag{"storage_gbs", "plan", "S", "rate at which a host of --hosts reads and writes files, GB/s", &C::storage_gbs, kAboveZero, {}, "hosts"},
    Flag{"verify", "inspect", "", "read and check every byte", &C::verify},
    Flag{"against", "inspect", "DIR", "a second checkpoint to compare with; none by default", &C::against},
    Flag{"model", "tokenize", "FOLDER", "a model's folder, for its tokenizer", &C::model},
    Flag{"special", "tokenize", "", "add what the post-processor adds: begin-of-text and the like", &C::special},
    Flag{"show", "tokenize", "", "text for people: decoded, with the special tokens, the learned part marked", &C::show},
    Flag{"show_rows", "train", "N", "rows to show before training: decoded, the learned part marked", &C::show_rows},
    Flag{"launch_id", "train", "N", "number of the launch; `pesc launch` gives it to its ranks", &C::launch_id},
    Flag{"n", "launch", "N", "ranks to start; by default the tasks of the Slurm job", {}},
    Flag{"hostfile", "launch", "FILE", "hosts to start them on; by default this host, or the nodes of the Slurm job", {}},
    Flag{"dir", "doctor", "FOLDER", "a folder to look at: room, locks, clock; by default the current one", &C::dir},
    Flag{"json", "doctor", "", "for a program: one JSON object", &C::json},
    // clang-format on
};

[[noreturn]] void refuse(const Flag& flag, const std::string& value, const std::string& what) {
  throw UsageError(str_cat("--", flag.name, ": '", value, "' ", what));
}

// Values of type T as gflags reads them: each flag of that type of the table, registered under its name.
template <class T>
class Values {
 public:
  Values() {
    for (const Flag& flag : kFlags) {
      bool here = std::holds_alternative<T C::*>(flag.target);
      if constexpr (std::is_same_v<T, int>)
        here |= std::holds_alternative<std::optional<int> C::*>(flag.target);
      if (!here) continue;
      T& value = values_[std::string(flag.name)];
      T& usual = usual_[std::string(flag.name)];
      names_.emplace_back(flag.name);
      gflags::FlagRegisterer(names_.back().c_str(), "", __FILE__, &value, &usual);
    }
  }
  const T& at(const Flag& flag) const { return values_.at(std::string(flag.name)); }

 private:
  std::map<std::string, T> values_, usual_;
  std::deque<std::string> names_;  // gflags keeps pointers
};

// The value that gflags makes of the text. Throws UsageError.
template <class T>
T parsed(const Flag& flag, const std::string& text, const char* otherwise) {
  static const Values<T>& values = *new Values<T>;  // gflags looks at them until the program ends
  // Of a number gflags would take an empty text for 0.
  if (text.empty() && !std::is_same_v<T, std::string>) refuse(flag, text, otherwise);
  if (gflags::SetCommandLineOption(std::string(flag.name).c_str(), text.c_str()).empty())
    refuse(flag, text, otherwise);
  return values.at(flag);
}

template <class T>
T number(const Flag& flag, const std::string& text, const char* otherwise) {
  const T value = parsed<T>(flag, text, otherwise);
  const auto as_double = static_cast<double>(value);
  if (!std::isfinite(as_double)) refuse(flag, text, "is not finite");
  if (flag.least == kAboveZero ? as_double <= 0 : as_double < flag.least)
    refuse(flag, text, flag.least == kAboveZero ? "is not above 0" : str_cat("is less than ", flag.least));
  return value;
}

}  // namespace

std::span<const Flag> flags() {
  return kFlags;
}

const Flag* find_flag(std::string_view name) {
  const auto found =
      std::find_if(kFlags.begin(), kFlags.end(), [name](const Flag& f) { return f.name == name; });
  return found == kFlags.end() ? nullptr : &*found;
}

bool reads(std::string_view verb, const Flag& flag) {
  return str_cat(" ", flag.verbs, " ").find(str_cat(" ", verb, " ")) != std::string::npos;
}

std::string dashed_name(const Flag& flag) {
  return str_cat(flag.name.size() == 1 ? "-" : "--", flag.name);
}

void set_flag(const Flag& flag, const std::string& value, CommandLine& c) {
  constexpr const char* kWhole = "is not a whole number that fits";
  if (const auto* text = std::get_if<std::string C::*>(&flag.target)) {
    c.** text = value;
  } else if (const auto* list = std::get_if<std::vector<std::string> C::*>(&flag.target)) {
    (c.**list).push_back(value);
  } else if (const auto* on = std::get_if<bool C::*>(&flag.target)) {
    c.** on = parsed<bool>(flag, value, "is neither true nor false");
  } else if (const auto* count = std::get_if<int C::*>(&flag.target)) {
    c.** count = number<int>(flag, value, kWhole);
  } else if (const auto* given = std::get_if<std::optional<int> C::*>(&flag.target)) {
    c.** given = number<int>(flag, value, kWhole);
  } else if (const auto* rate = std::get_if<double C::*>(&flag.target)) {
    c.** rate = number<double>(flag, value, "is not a number");
  } else if (const auto* id = std::get_if<uint64_t C::*>(&flag.target)) {
    c.** id = number<uint64_t>(flag, value, kWhole);
  }
}

}  // namespace pesc
