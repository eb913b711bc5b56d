#include "launcher/command_line.h"

#include <glog/logging.h>

#include <algorithm>
#include <cstdio>
#include <set>

#include "launcher/flags.h"
#include "launcher/help.h"
#include "launcher/standard_output.h"
#include "launcher/verbs.h"
#include "ops/core/check.h"
#include "runtime/config/shapes.h"
#include "runtime/config/unknown_names.h"
#include "runtime/text/utf8.h"

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

bool is_help(std::string_view argument) {
  return argument == "--help" || argument == "-help" || argument == "-h";
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
    throw UsageError(str_cat("unexpected argument '", argument, "'", see_help(c.verb)));
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
                             "? Fields of the experiment are set with --set path.to.field=value",
                             see_help(c.verb)));
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
  exclude("scaling", "shortest", "the points have full rows");
  exclude("hosts", "ranks", "a cluster has as many ranks as GPUs");
  for (const std::string& name : given) {
    const std::string with(find_flag(name)->with);
    if (!with.empty() && !seen.contains(with))
      throw UsageError(str_cat("--", name, " has no effect without --", with, "; give both, or neither"));
  }
  if (seen.contains("prompt") && c.prompt.empty())
    throw UsageError("--prompt is empty; write the question behind it, or hold a conversation with --chat");
  const auto check_utf8 = [](const char* name, const std::string& text) {
    if (const size_t at = valid_utf8_prefix(text); at < text.size())
      throw UsageError(
          str_cat("--", name, " is not valid UTF-8 (byte ", at + 1, "); write it in a UTF-8 locale"));
  };
  check_utf8("prompt", c.prompt);
  check_utf8("system", c.system);
}

// Once, by one rank: settings that nothing reads because of others.
void warn_of_unused(const ExperimentConfig& config, const CommandLine& command) {
  using Concerns = UnusedSetting::Concerns;
  const bool answers = command.verb == "eval" || command.verb == "generate";
  const bool trains = command.verb == "train";
  const bool plans = command.verb == "plan";    // of a training run
  const bool launched = command.launch_id > 0;  // `pesc launch` counts from 1
  for (const UnusedSetting& u : config.unused) {
    const bool said = u.concerns == Concerns::kAll || (u.concerns == Concerns::kAnswers && answers) ||
                      (u.concerns == Concerns::kTraining && (trains || plans)) ||
                      (u.concerns == Concerns::kEvaluations && (trains || command.verb == "eval")) ||
                      (u.concerns == Concerns::kWithoutLaunch && trains && !launched);
    if (said) LOG(WARNING) << u.text;
  }
}

}  // namespace

CommandLine parse_command_line(int argc, char** argv) {
  CommandLine c;
  std::vector<std::string> given;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (is_help(argument)) {
      if (c.verb != "help" || c.topic.empty()) c.topic = c.verb;
      if (!c.topic.empty()) (void)known_verb(c.topic);
      c.verb = "help";
      return c;
    }
    if (argument.starts_with("-")) {
      given.push_back(take_flag(argc, argv, i, c));
    } else if (c.verb.empty()) {
      c.verb = argument;
    } else if ((c.verb == "help" || c.verb == "completion") && c.topic.empty()) {
      c.topic = argument;
    } else {
      throw UsageError(str_cat("unexpected argument '", argument, "'", see_help(c.verb)));
    }
  }
  if (c.verb.empty()) throw UsageError(usage());
  (void)known_verb(c.verb);
  if (c.verb == "help" && !c.topic.empty()) (void)known_verb(c.topic);
  if (c.verb == "launch")
    throw UsageError(str_cat("`launch` stands first: pesc launch -n N -- train ...", see_help("launch")));
  check_flags_of_verb(c, given);
  return c;
}

std::optional<CommandLine> parse_alone(int argc, char** argv) {
  if (argc < 2) return {};
  const bool launch = std::string_view(argv[1]) == "launch";
  int first = 1;
  if (launch) {
    // Its own words, and behind `--` those of train.
    for (first = 2; first < argc && std::string_view(argv[first]) != "--"; ++first) {
      if (!is_help(argv[first])) continue;
      CommandLine c;
      c.verb = "help";
      c.topic = "launch";
      return c;
    }
    first = std::min(first + 1, argc);
  }
  std::vector<char*> words{argv[0]};
  words.insert(words.end(), argv + first, argv + argc);
  try {
    CommandLine c = parse_command_line(static_cast<int>(words.size()), words.data());
    if (launch ? c.verb == "help" : c.scaling || known_verb(c.verb).run_alone != nullptr) return c;
  } catch (const UsageError&) {
    const Verb* verb = find_verb(argv[1]);
    if (verb != nullptr && verb->run_alone != nullptr) throw;
  }
  return {};
}

ExperimentConfig read_experiment(const Process& process, const CommandLine& command) {
  ExperimentConfig config;
  run_collectively(process.world, [&] {
    if (command.config.empty())
      throw UsageError(str_cat("pesc ", command.verb, " needs --config FILE", see_help(command.verb)));
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
