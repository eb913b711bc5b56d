#include "launcher/command_line.h"

#include <glog/logging.h>

#include <algorithm>
#include <cstdio>
#include <set>

#include "launcher/flags.h"
#include "launcher/standard_output.h"
#include "ops/core/check.h"
#include "runtime/config/shapes.h"
#include "runtime/config/unknown_names.h"

namespace pesc {
namespace {

template <class List, class Name>
std::string nearest_of(const std::string& name, const List& list, const Name& name_of) {
  std::vector<std::string> names;
  for (const auto& entry : list) names.emplace_back(name_of(entry));
  return nearest_name(name, names);
}

std::string nearest_flag(const std::string& name) {
  return nearest_of(name, flags(), [](const Flag& f) { return f.name; });
}

bool is_switch(const Flag* flag) {
  return flag != nullptr && flag->value.empty();
}

// Takes "--name=value", "--name value" or, of a switch, "--name" and "--noname" at argv[i], and moves i over
// it. Returns the name.
std::string take_flag(int argc, char** argv, int& i, CommandLine& c) {
  const std::string argument = argv[i];
  const size_t begin = argument.find_first_not_of('-');
  if (begin == std::string::npos)
    throw UsageError(str_cat("unexpected argument '", argument, "'\n", usage()));
  const size_t equals = argument.find('=', begin);
  std::string name = argument.substr(begin, equals == std::string::npos ? equals : equals - begin);
  std::string value = equals == std::string::npos ? "" : argument.substr(equals + 1);
  const Flag* flag = find_flag(name);
  if (flag == nullptr && name.starts_with("no") && is_switch(find_flag(name.substr(2))) && value.empty()) {
    name = name.substr(2);
    flag = find_flag(name);
    value = "false";
  }
  if (flag == nullptr) {
    throw UsageError(str_cat("unknown flag --", name, "; did you mean --", nearest_flag(name),
                             "? Fields of the experiment are set with --set path.to.field=value\n", usage()));
  }
  if (is_switch(flag) && value.empty()) value = "true";
  if (equals == std::string::npos && !is_switch(flag)) {
    if (i + 1 >= argc) throw UsageError(str_cat("--", name, " needs a value"));
    value = argv[++i];
  }
  set_flag(*flag, value, c);
  return name;
}

// "eval, generate and export"
std::string listed(std::string_view words) {
  std::string text(words);
  const size_t last = text.rfind(' ');
  if (last != std::string::npos) text.replace(last, 1, " and ");
  for (size_t at = 0; (at = text.find(' ', at)) < last && last != std::string::npos; at += 2)
    text.replace(at, 1, ", ");
  return text;
}

void check_flags_of_verb(const CommandLine& c, const std::vector<std::string>& given) {
  std::set<std::string> seen;
  for (const std::string& name : given) {
    const Flag& flag = *find_flag(name);
    if (!reads(c.verb, flag)) {
      throw UsageError(str_cat("pesc ", c.verb, " does not read --", name, "; ", listed(flag.verbs),
                               flag.verbs.find(' ') == std::string_view::npos ? " does" : " do"));
    }
    if (!seen.insert(name).second &&
        !std::holds_alternative<std::vector<std::string> CommandLine::*>(flag.target))
      throw UsageError(str_cat("--", name, " is given twice; leave one out"));
  }
  const auto exclude = [&](const char* one, const char* other, const char* why) {
    if (seen.contains(one) && seen.contains(other))
      throw UsageError(str_cat("--", one, " and --", other, " exclude each other: ", why));
  };
  exclude("base", "checkpoint", "the base model has no checkpoint");
  exclude("system", "prompts", "the rows of a file have their own system texts");
}

// Once, by one rank: settings that nothing reads because of others.
void warn_of_unused(const ExperimentConfig& config, const CommandLine& command) {
  using Concerns = UnusedSetting::Concerns;
  const bool answers = command.verb == "eval" || command.verb == "generate";
  const bool trains = command.verb == "train";
  const bool launched = command.launch_id > 0;  // `pesc launch` counts from 1
  for (const UnusedSetting& u : config.unused) {
    const bool said = u.concerns == Concerns::kAll || (u.concerns == Concerns::kAnswers && answers) ||
                      (u.concerns == Concerns::kTraining && trains) ||
                      (u.concerns == Concerns::kWithoutLaunch && trains && !launched);
    if (said) LOG(WARNING) << u.text;
  }
}

// The text in lines of at most `width`, all but the first indented.
std::string wrapped(const std::string& text, size_t indent, size_t width) {
  std::string out;
  size_t column = indent;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    if (begin > 0 && column + 1 + end - begin > width) {
      out += "\n" + std::string(indent, ' ');
      column = indent;
    } else if (begin > 0) {
      out += ' ';
      ++column;
    }
    out += text.substr(begin, end - begin);
    column += end - begin;
    begin = end + 1;
  }
  return out;
}

}  // namespace

std::string usage() {
  std::string text =
      "usage: pesc VERB --config FILE [--set path.to.field=value ...] [flags]\n"
      "  train      tune on the ranks that mpirun or srun started; resumes by itself\n"
      "  launch -n N [--hostfile H] -- train --config FILE ...\n"
      "             starts N ranks of train, watches them, restarts after a fault\n"
      "  eval       eval loss, exact match and experts per dataset tag\n"
      "  generate   answers --prompt TEXT or the rows of --prompts FILE\n"
      "  export     the tuned model as a folder that transformers, PEFT or the published code loads\n"
      "  report     one page of HTML of one run, or of several side by side: --run DIR --out FILE. No "
      "--config.\n"
      "  bench      times the training step against the speed of light\n"
      "  plan       memory, arithmetic, exchange and time of a run, and whether it fits, without the device\n"
      "  inspect    what a checkpoint holds; checks every byte; compares two (ends with 1 where they "
      "differ);\n"
      "             a run directory as DIR: all its checkpoints, checked. No --config.\n"
      "  tokenize   tokens of the lines on standard input, each a JSON string or a training row, by --model "
      "FOLDER;\n"
      "             of a row also what of it is learned. No --config.\n"
      "flags, and the verbs that read them:\n";
  for (const Flag& flag : flags()) {
    std::string name =
        str_cat(flag.name.size() == 1 ? "  -" : "  --", flag.name, flag.value.empty() ? "" : " ", flag.value);
    name.resize(std::max<size_t>(name.size() + 1, 22), ' ');
    text += name + wrapped(str_cat(listed(flag.verbs), ": ", flag.help), 22, 110) + "\n";
  }
  return text;
}

CommandLine parse_command_line(int argc, char** argv) {
  CommandLine c;
  std::vector<std::string> given;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--help" || argument == "-h") {
      c.verb = "help";
      return c;
    }
    if (argument.starts_with("-")) {
      given.push_back(take_flag(argc, argv, i, c));
    } else if (c.verb.empty()) {
      c.verb = argument;
    } else {
      throw UsageError(str_cat("unexpected argument '", argument, "'\n", usage()));
    }
  }
  if (c.verb.empty()) throw UsageError(usage());
  if (std::find(verbs().begin(), verbs().end(), c.verb) == verbs().end()) {
    throw UsageError(str_cat("unknown verb '", c.verb, "'; did you mean '",
                             nearest_of(c.verb, verbs(), [](std::string_view v) { return v; }), "'?\n",
                             usage()));
  }
  if (c.verb == "launch")
    throw UsageError(str_cat("`launch` stands first: pesc launch -n N -- train ...\n", usage()));
  check_flags_of_verb(c, given);
  return c;
}

ExperimentConfig read_experiment(const Process& process, const CommandLine& command) {
  ExperimentConfig config;
  run_collectively(process.world, [&] {
    if (command.config.empty())
      throw UsageError(str_cat("pesc ", command.verb, " needs --config FILE\n", usage()));
    if (!command.out.empty() && process.world.rank() == 0)
      command.verb == "export" ? check_out_folder(command.out) : check_out_file(command.out);
    const bool runs = command.verb != "bench" && command.verb != "plan";
    config = load_experiment(command.config, command.overrides,
                             runs ? ExperimentUse::kRun : ExperimentUse::kBench);
    if (process.world.rank() == 0) warn_of_unused(config, command);
    if (command.shape.empty()) return;
    config.model.shape = load_shape(command.shape, config.model.links);
    config.model.path.clear();
    config.model.tokenizer.clear();
    config.data.train.clear();
    config.data.eval.clear();
  });
  return config;
}

HostPlacement place(const Process& process, const ExperimentConfig& config) {
  HostPlacement p =
      place_rank_on_host(process.cores, process.local_rank, process.local_size, config.parallel.num_threads);
  if (process.world.rank() == 0 && !p.why.empty())
    std::fprintf(stderr, "rank 0 uses %d threads: %s\n", p.threads, p.why.c_str());
  return p;
}

}  // namespace pesc
