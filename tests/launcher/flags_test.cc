// The command line: flags, the verbs that read them, and what is told about mistakes.
#include "launcher/flags.h"

#include <gtest/gtest.h>

#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "launcher/verbs.h"
#include "ops/core/check.h"
#include "runtime/export/export.h"
#include "runtime/export/export_format.h"
#include "runtime/machine.h"

namespace pesc {
namespace {

CommandLine parse(std::vector<std::string> words) {
  words.insert(words.begin(), "pesc");
  std::vector<char*> argv;
  for (std::string& w : words) argv.push_back(w.data());
  return parse_command_line(static_cast<int>(argv.size()), argv.data());
}

std::string refusal(const std::vector<std::string>& words) {
  try {
    (void)parse(words);
  } catch (const UsageError& e) {
    return e.what();
  }
  ADD_FAILURE() << "nothing was refused";
  return "";
}

// The flag with a value that it takes, and the flag that it needs.
std::vector<std::string> given(const Flag& flag) {
  std::vector<std::string> words{str_cat("--", flag.name)};
  if (!flag.value.empty()) words.emplace_back("1");
  if (flag.with.empty()) return words;
  for (const std::string& word : given(*find_flag(flag.with))) words.push_back(word);
  return words;
}

TEST(Flags, EveryVerbTakesItsOwnFlagsAndRefusesTheOthersNamingWhoReadsThem) {
  for (const Verb& entry : verbs()) {
    const std::string_view verb = entry.name;
    if (verb == "launch") continue;  // parses its own
    for (const Flag& flag : flags()) {
      std::vector<std::string> words{std::string(verb)};
      for (const std::string& w : given(flag)) words.push_back(w);
      if (reads(verb, flag)) {
        EXPECT_EQ(parse(words).verb, verb) << flag.name;
        continue;
      }
      const std::string message = refusal(words);
      EXPECT_TRUE(message.starts_with(str_cat("pesc ", verb, " does not read --", flag.name, "; ")))
          << message;
      for (const Verb& reader : verbs()) {
        if (reads(reader.name, flag)) {
          EXPECT_NE(message.find(reader.name), std::string::npos) << message;
        }
      }
    }
  }
  EXPECT_NE(refusal({"train", "--samples", "3"}).find("--samples; eval does"), std::string::npos);
  EXPECT_NE(refusal({"--checkpoint=x", "train"}).find("eval, generate, export and inspect do"),
            std::string::npos);
}

TEST(Flags, ValuesAreReadWholeAndInRange) {
  EXPECT_EQ(parse({"eval", "--samples=3"}).samples, 3);
  EXPECT_EQ(parse({"eval", "-samples", "3"}).samples, 3);
  EXPECT_EQ(parse({"plan", "--link_gbs", "2.5e1"}).link_gbs, 25);
  EXPECT_EQ(parse({"train", "--set", "a=1", "--set=b=2"}).overrides,
            (std::vector<std::string>{"a=1", "b=2"}));
  EXPECT_EQ(parse({"report", "--run", "a", "--run=b"}).runs, (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(parse({"eval", "--base"}).base);
  EXPECT_FALSE(parse({"eval", "--nobase"}).base);
  EXPECT_FALSE(parse({"eval", "--base=false"}).base);
  for (const char* bad : {"--samples=x", "--samples=3x", "--samples=", "--samples=1.5", "--samples=-1",
                          "--samples=99999999999", "--base=maybe"})
    EXPECT_TRUE(
        refusal({"eval", bad}).starts_with(std::string(bad).substr(0, std::string(bad).find('=')) + ": "))
        << bad;
  for (const char* bad : {"--ranks=0", "--link_gbs=0", "--link_gbs=nan", "--link_gbs=inf", "--device_gib=-1"})
    EXPECT_FALSE(refusal({"plan", bad}).empty()) << bad;
  EXPECT_FALSE(refusal({"bench", "--steps=0"}).empty());
  EXPECT_EQ(parse({"bench", "--config", "x", "--shortest", "5"}).shortest, 5);
  EXPECT_EQ(parse({"bench", "--config", "x"}).shortest, std::nullopt);
  for (const char* least : {"0", "-1"}) {
    EXPECT_TRUE(refusal({"bench", "--config", "x", "--shortest", least})
                    .starts_with(str_cat("--shortest: '", least, "' is less than 1")));
  }
}

TEST(Flags, WhatIsGivenTwiceOrExcludesEachOtherIsRefused) {
  EXPECT_NE(refusal({"eval", "--samples", "1", "--samples", "2"}).find("--samples is given twice"),
            std::string::npos);
  EXPECT_NE(refusal({"eval", "--base", "--checkpoint", "x"}).find("exclude each other"), std::string::npos);
  EXPECT_NE(refusal({"generate", "--prompts", "f", "--system", "x"}).find("exclude each other"),
            std::string::npos);
}

TEST(Flags, WhatHasNoEffectWithoutAnotherIsRefusedAlone) {
  EXPECT_NE(refusal({"plan", "--storage_gbs", "2"}).find("--storage_gbs has no effect without --hosts"),
            std::string::npos);
  EXPECT_NE(
      refusal({"bench", "--scaling_points", "dp"}).find("--scaling_points has no effect without --scaling"),
      std::string::npos);
  EXPECT_EQ(parse({"plan", "--storage_gbs", "2", "--hosts", "3"}).hosts, 3);
  EXPECT_EQ(parse({"plan"}).hosts, std::nullopt);
  for (const std::vector<std::string>& words :
       {std::vector<std::string>{"plan", "--hosts", "2", "--ranks", "4"},
        {"bench", "--scaling", "--shortest", "5"}})
    EXPECT_NE(refusal(words).find("exclude each other"), std::string::npos);
  for (const Flag& flag : flags())
    EXPECT_TRUE(flag.with.empty() || find_flag(flag.with) != nullptr) << flag.name;
}

TEST(Flags, APromptIsText) {
  EXPECT_NE(refusal({"generate", "--prompt", ""}).find("--prompt is empty; write the question behind it"),
            std::string::npos);
  EXPECT_NE(refusal({"generate", "--prompt", "a\xFF"}).find("--prompt is not valid UTF-8 (byte 2)"),
            std::string::npos);
  EXPECT_NE(refusal({"generate", "--chat", "--system", "\xC3"}).find("--system is not valid UTF-8 (byte 1)"),
            std::string::npos);
}

TEST(Flags, UnknownNamesAndVerbs) {
  EXPECT_NE(refusal({"eval", "--sample", "1"}).find("did you mean --samples?"), std::string::npos);
  EXPECT_NE(refusal({"evall"}).find("did you mean 'eval'?"), std::string::npos);
  EXPECT_NE(refusal({"eval", "--samples"}).find("--samples needs a value"), std::string::npos);
  EXPECT_NE(refusal({"--config", "x", "launch"}).find("`launch` stands first"), std::string::npos);
  EXPECT_EQ(parse({"eval", "--help"}).verb, "help");
}

// What the shell offers is taken.
TEST(Flags, ChoicesAreValuesOfTheFlag) {
  const auto words = [](const char* flag) {
    std::istringstream in{std::string(find_flag(flag)->choices)};
    return std::vector<std::string>(std::istream_iterator<std::string>(in), {});
  };
  EXPECT_EQ(words("gpu"), gpu_names());
  for (const std::string& word : words("format")) EXPECT_EQ(format_name(export_format(word)), word);
  EXPECT_EQ(words("format").size(), 3U);
  for (const std::string& word : words("dtype")) EXPECT_TRUE(export_dtype(word).has_value());
  EXPECT_EQ(words("dtype").size(), 2U);
}

}  // namespace
}  // namespace pesc
