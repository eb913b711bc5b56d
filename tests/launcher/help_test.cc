// Help: every verb says what it does, its own flags with their defaults, examples that the parser takes, and its exit
// codes; a new verb or flag cannot be forgotten.
#include "launcher/help.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "ops/core/check.h"

namespace pesc {
namespace {

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> argv;
  for (std::string& w : words) argv.push_back(w.data());
  return argv;
}

CommandLine parse(std::vector<std::string> words) {
  words.insert(words.begin(), "pesc");
  std::vector<char*> argv = pointers(words);
  return parse_command_line(static_cast<int>(argv.size()), argv.data());
}

std::optional<CommandLine> alone(std::vector<std::string> words) {
  words.insert(words.begin(), "pesc");
  std::vector<char*> argv = pointers(words);
  return parse_alone(static_cast<int>(argv.size()), argv.data());
}

// The words behind `pesc` in a command line as one types it, up to a pipe or a file; quoted ones are one word.
std::vector<std::string> words_behind_pesc(const std::string& command) {
  std::vector<std::string> words;
  std::string word;
  bool quoted = false, any = false;
  for (const char c : command + " ") {
    if (c == '"') {
      quoted = !quoted;
      any = true;
    } else if (c == ' ' && !quoted) {
      if (any || !word.empty()) words.push_back(word);
      word.clear();
      any = false;
    } else {
      word += c;
    }
  }
  const auto is_pesc = [](const std::string& w) {
    return w == "pesc" || w.ends_with("/pesc") || w == "<(pesc";
  };
  const auto at = std::find_if(words.begin(), words.end(), is_pesc);
  if (at == words.end()) return {};
  words.erase(words.begin(), at + 1);
  words.erase(std::find_if(words.begin(), words.end(),
                           [](const std::string& w) { return w == "|" || w == ">" || w == "<"; }),
              words.end());
  if (!words.empty() && words.back().ends_with(")")) words.back().pop_back();
  return words;
}

TEST(Help, EveryVerbHasAllParts) {
  std::set<std::string_view> names;
  for (const Verb& verb : verbs()) {
    SCOPED_TRACE(verb.name);
    EXPECT_TRUE(names.insert(verb.name).second) << "twice in the table";
    EXPECT_FALSE(verb.arguments.empty());
    EXPECT_GT(verb.summary.size(), 20U);
    EXPECT_LT(verb.summary.size(), 100U) << "one line";
    EXPECT_FALSE(verb.summary.ends_with("."));
    EXPECT_GT(verb.about.size(), 40U);
    EXPECT_TRUE(verb.about.ends_with("."));
    EXPECT_TRUE(verb.run == nullptr || verb.run_alone == nullptr);
    EXPECT_EQ(verb.run != nullptr || verb.run_alone != nullptr, verb.name != "launch");
    size_t examples = 0;
    for (const Example& example : verb.examples) {
      if (example.command.empty()) continue;
      ++examples;
      EXPECT_FALSE(example.what.empty()) << example.command;
    }
    EXPECT_GE(examples, 2U) << "two or three examples";
  }
}

TEST(Help, ExamplesAreCommandsOfTheirVerb) {
  for (const Verb& verb : verbs()) {
    for (const Example& example : verb.examples) {
      if (example.command.empty()) continue;
      SCOPED_TRACE(example.command);
      std::vector<std::string> words = words_behind_pesc(std::string(example.command));
      ASSERT_FALSE(words.empty());
      EXPECT_EQ(words.front(), verb.name);
      if (verb.name == "launch") {
        const auto dashes = std::find(words.begin(), words.end(), "--");
        ASSERT_NE(dashes, words.end());
        EXPECT_EQ(parse({dashes + 1, words.end()}).verb, "train");
        continue;
      }
      EXPECT_EQ(parse(words).verb, verb.name);
    }
  }
}

TEST(Help, ExitCodesAreOursAndHaveAMeaning) {
  for (const Verb& verb : verbs()) {
    SCOPED_TRACE(verb.name);
    std::istringstream in{std::string(verb.exit_codes)};
    std::vector<int> codes;
    for (int code = 0; in >> code;) codes.push_back(code);
    EXPECT_TRUE(in.eof());
    ASSERT_FALSE(codes.empty());
    EXPECT_EQ(codes.front(), 0);
    EXPECT_TRUE(std::is_sorted(codes.begin(), codes.end()));
    for (const int code : codes) EXPECT_FALSE(exit_code_meaning(verb, code).empty()) << code;
    EXPECT_EQ(std::find(codes.begin(), codes.end(), 1) != codes.end(), !verb.when_one.empty());
    EXPECT_NE(std::find(codes.begin(), codes.end(), 64), codes.end());
  }
}

TEST(Help, AVerbsPageHasItsOwnFlagsAndNoOthers) {
  for (const Verb& verb : verbs()) {
    const std::string page = help_text(verb);
    SCOPED_TRACE(page);
    for (const Flag& flag : flags()) {
      const std::string row = str_cat("\n  ", flag.name.size() == 1 ? "-" : "--", flag.name, " ");
      EXPECT_EQ(page.find(row) != std::string::npos, reads(verb.name, flag)) << flag.name;
    }
    for (const char* part : {"usage\n  pesc ", "examples\n", "exit codes\n  0 "})
      EXPECT_NE(page.find(part), std::string::npos) << part;
    EXPECT_EQ(page.find('\033'), std::string::npos);
    std::istringstream lines(page);
    for (std::string line; std::getline(lines, line);) {
      const bool command = line.find("pesc ") != std::string::npos;  // of an example, which is not cut
      EXPECT_TRUE(command || line.size() <= 100) << line;
    }
    EXPECT_NE(usage().find(str_cat("\n  ", verb.name, " ")), std::string::npos)
        << "the list of verbs lacks it";
  }
  EXPECT_NE(help_text(known_verb("eval"), Headings::kBold).find("\033[1mflags\033[0m"), std::string::npos);
}

TEST(Help, EveryFlagWithAValueSaysItsDefault) {
  // Needed, or none.
  const std::set<std::string_view> without = {"config", "set", "prompt",    "prompts",
                                              "model",  "run", "merge_into"};
  for (const Flag& flag : flags()) {
    if (flag.value.empty()) continue;  // off
    const std::string text = flag_help(flag);
    EXPECT_EQ(text.find("default") != std::string::npos, !without.contains(flag.name))
        << flag.name << ": " << text;
  }
  EXPECT_TRUE(flag_help(*find_flag("steps")).ends_with("(default 20)"));
  EXPECT_TRUE(flag_help(*find_flag("samples")).ends_with("(default 0)"));
}

TEST(Help, IsAskedForInEveryForm) {
  const auto topic = [](std::vector<std::string> words) {
    const auto c = alone(std::move(words));
    return c && c->verb == "help" ? "help " + c->topic : "none";
  };
  for (const char* form : {"--help", "-help", "-h", "help"}) EXPECT_EQ(topic({form}), "help ");
  for (const Verb& verb : verbs()) {
    const std::string name(verb.name);
    EXPECT_EQ(topic({name, "--help"}), "help " + name);
    EXPECT_EQ(topic({"help", name}), "help " + name);
  }
  EXPECT_EQ(topic({"eval", "--config", "x", "--help"}), "help eval");
  EXPECT_EQ(topic({"launch", "-n", "4", "--help"}), "help launch");
  EXPECT_EQ(topic({"launch", "-n", "4", "--", "train", "--help"}), "help train");
  EXPECT_EQ(topic({"generate", "--prompt", "--help"}), "none") << "the value of a flag";
  EXPECT_THROW((void)alone({"help", "evall"}), UsageError);
}

TEST(Help, WhatRunsAloneIsFoundWithoutMpi) {
  EXPECT_EQ(alone({"doctor", "--json"})->verb, "doctor");
  EXPECT_EQ(alone({"completion", "bash"})->topic, "bash");
  EXPECT_THROW((void)alone({"doctor", "--samples", "3"}), UsageError) << "at once, without MPI";
  EXPECT_THROW((void)alone({"doctor", "twice"}), UsageError);
  for (const std::vector<std::string>& words :
       std::vector<std::vector<std::string>>{{},
                                             {"train"},
                                             {"eval", "--config", "x"},
                                             {"trian"},
                                             {"--nothing"},
                                             {"launch"},
                                             {"launch", "-n", "2"},
                                             {"launch", "-n", "2", "--", "train", "--config", "x"},
                                             {"launch", "--"},
                                             {"launch", "-n", "2", "--", "doctor"},
                                             {"eval", "--sample", "1"}})
    EXPECT_FALSE(alone(words).has_value()) << (words.empty() ? "" : words.front());
}

TEST(Help, MistakesPointToIt) {
  const auto refusal = [](std::vector<std::string> words) -> std::string {
    try {
      (void)parse(std::move(words));
    } catch (const UsageError& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_NE(refusal({"eval", "--sample", "1"}).find("see `pesc eval --help`"), std::string::npos);
  EXPECT_NE(refusal({"eval", "again"}).find("see `pesc eval --help`"), std::string::npos);
  EXPECT_NE(refusal({"evall"}).find("did you mean 'eval'?"), std::string::npos);
  EXPECT_NE(refusal({"chat"}).find("`pesc generate --chat`"), std::string::npos);
  EXPECT_NE(refusal({"help", "evall"}).find("did you mean 'eval'?"), std::string::npos);
  EXPECT_TRUE(refusal({}).starts_with("usage: pesc VERB"));
}

}  // namespace
}  // namespace pesc
