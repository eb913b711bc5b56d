// Columns of a file, the share of the rows that is evaluated, and what looks at evaluations.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "ops/core/check.h"
#include "runtime/config/experiment.h"
#include "runtime/config/same_run.h"

namespace pesc {
namespace {

// Its lines are named in messages.
constexpr const char* kText =
    "run_dir: \"runs/t\"\n"                              // 1
    "model { path: \"base\" }\n"                         // 2
    "train { max_steps: 10 global_batch_size: 8 }\n"     // 3
    "data { train { path: \"a.jsonl\"\n"                 // 4
    "  columns { prompt: \"q\" completion: \"r\" } }\n"  // 5
    "}\n";

ExperimentConfig parse(const std::vector<std::string>& overrides = {}, const std::string& text = kText) {
  return parse_experiment(text, "e.textproto", overrides);
}

std::string refusal(const std::vector<std::string>& overrides, const std::string& text = kText) {
  try {
    (void)parse(overrides, text);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "accepted";
}

std::string replaced(const std::string& from, const std::string& to) {
  std::string text = kText;
  return text.replace(text.find(from), from.size(), to);
}

using Columns = std::map<std::string, std::string>;

TEST(DataSettings, ColumnsAreReadByTheFilesNames) {
  const ExperimentConfig c = parse({"data.eval[0].path=e.jsonl", "data.eval[0].columns.corpus=text"});
  EXPECT_EQ(c.data.train[0].columns, (Columns{{"q", "prompt"}, {"r", "completion"}}));
  EXPECT_EQ(c.data.eval[0].columns, (Columns{{"text", "corpus"}}));
  EXPECT_TRUE(c.data.evaluates());
  // The resolved text gives the same.
  EXPECT_EQ(parse({}, c.text).data.train[0].columns, c.data.train[0].columns);
  EXPECT_EQ(parse({}, c.text).text, c.text);
}

TEST(DataSettings, ColumnsThatCannotBeAreRefusedWithFileAndLine) {
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "e.textproto:5: data.train[0].columns.prompt is empty",
                      refusal({}, replaced("\"q\"", "\"\"")));
  const std::string twice = refusal({}, replaced("\"r\"", "\"q\""));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "e.textproto:5: data.train[0].columns.completion is 'q'",
                      twice);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "data.train[0].columns.prompt names already", twice);
  const std::string unknown = refusal({}, replaced("prompt:", "promt:"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "e.textproto:5:", unknown);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "no field 'promt' in Columns; did you mean 'prompt'?", unknown);
}

TEST(DataSettings, AShareOfTheRowsIsEvaluatedInPlaceOfFiles) {
  EXPECT_EQ(parse().data.validation_fraction, 0);
  EXPECT_FALSE(parse().data.evaluates());
  const ExperimentConfig c = parse({"data.validation_fraction=0.1"});
  EXPECT_EQ(c.data.validation_fraction, 0.1);
  EXPECT_TRUE(c.data.evaluates());
  for (const char* wrong : {"1", "-0.1", "2", "nan"})
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "data.validation_fraction is ",
                        refusal({std::string("data.validation_fraction=") + wrong}));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring,
                      "but data.eval names files to evaluate; leave one of the two out",
                      refusal({"data.validation_fraction=0.1", "data.eval[0].path=e.jsonl"}));
  EXPECT_PRED_FORMAT2(
      ::testing::IsSubstring, "fewer than the 2 files of data.train",
      refusal({"data.validation_fraction=0.1", "data.train[1].path=b.jsonl", "train.max_eval_samples=1"}));
}

TEST(DataSettings, WhatLooksAtEvaluationsNeedsThem) {
  for (const char* setting : {"checkpoint.keep_best=true", "train.early_stopping_patience=3"}) {
    SCOPED_TRACE(setting);
    for (const std::vector<std::string>& others :
         {std::vector<std::string>{}, {"train.eval_steps=2"}, {"data.validation_fraction=0.1"}}) {
      std::vector<std::string> all = others;
      all.emplace_back(setting);
      EXPECT_PRED_FORMAT2(::testing::IsSubstring,
                          "set train.eval_steps, and data.eval or data.validation_fraction", refusal(all));
    }
    EXPECT_EQ(refusal({"train.eval_steps=2", "data.validation_fraction=0.1", setting}), "accepted");
    EXPECT_EQ(refusal({"train.eval_steps=2", "data.eval[0].path=e.jsonl", setting}), "accepted");
  }
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "train.early_stopping_patience is -1",
                      refusal({"train.early_stopping_patience=-1"}));
  EXPECT_TRUE(parse({"train.eval_steps=2", "data.validation_fraction=0.1", "checkpoint.keep_best=true"})
                  .checkpoint.keep_best);
}

// With keep_best there are saves between, so what is said of them has an effect.
TEST(DataSettings, OnlyWhatHasNoEffectIsSaidToHaveNone) {
  const auto said = [](const std::vector<std::string>& settings) {
    std::string all;
    for (const UnusedSetting& u : parse(settings).unused) all += u.text + "\n";
    return all;
  };
  EXPECT_NE(said({"checkpoint.async_save=false"}), "");
  EXPECT_EQ(said({"checkpoint.async_save=false", "train.eval_steps=2", "data.validation_fraction=0.1",
                  "checkpoint.keep_best=true"}),
            "");
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "without files in data.eval or a data.validation_fraction",
                      said({"train.eval_steps=2"}));
}

// Another fraction is other rows, among them some that were trained on.
TEST(DataSettings, AnEvaluationKeepsTheShareOfTheRun) {
  using Lines = std::vector<std::string>;
  const auto refused = [](const char* before, const std::vector<std::string>& now, CheckpointUse use) {
    return compare_runs(parse({before}).text, parse(now).text, use).refused;
  };
  const char* some = "data.validation_fraction=0.2";
  const char* most = "data.validation_fraction=0.9";
  const char* why = " (rows that were trained on would be evaluated)";
  EXPECT_EQ(refused(some, {most}, CheckpointUse::kEvaluate),
            Lines{std::string("data.validation_fraction: 0.2 -> 0.9") + why});
  EXPECT_EQ(refused("data.validation_fraction=0", {most}, CheckpointUse::kEvaluate),
            Lines{std::string("data.validation_fraction: 0 -> 0.9") + why});
  EXPECT_EQ(refused(some, {some, "train.seed=7"}, CheckpointUse::kEvaluate), Lines{});
  EXPECT_EQ(refused(some, {"data.eval[0].path=e.jsonl"}, CheckpointUse::kEvaluate), Lines{});
  for (const CheckpointUse use : {CheckpointUse::kAnswer, CheckpointUse::kExport})
    EXPECT_EQ(refused(some, {most}, use), Lines{});
}

TEST(DataSettings, AResumedRunKeepsItsShareAndMayRenameColumns) {
  const auto refused = [](const std::vector<std::string>& before, const std::vector<std::string>& now,
                          CheckpointUse use) {
    return compare_runs(parse(before).text, parse(now).text, use).refused;
  };
  using Lines = std::vector<std::string>;
  EXPECT_EQ(
      refused({"data.validation_fraction=0.1"}, {"data.validation_fraction=0.2"}, CheckpointUse::kResume),
      Lines{"data.validation_fraction: 0.1 -> 0.2"});
  for (const CheckpointUse use : {CheckpointUse::kAnswer, CheckpointUse::kEvaluate, CheckpointUse::kExport})
    EXPECT_EQ(refused({"data.validation_fraction=0.1"}, {}, use), Lines{});
  EXPECT_EQ(refused({}, {"data.train[0].columns.prompt=x"}, CheckpointUse::kResume), Lines{});
  EXPECT_EQ(refused({},
                    {"train.eval_steps=2", "data.eval[0].path=e.jsonl", "checkpoint.keep_best=true",
                     "train.early_stopping_patience=3"},
                    CheckpointUse::kResume),
            Lines{});
}

}  // namespace
}  // namespace pesc
