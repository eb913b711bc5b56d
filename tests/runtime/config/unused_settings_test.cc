// Settings that are accepted and cannot act in this run are named, with their place.
#include "runtime/config/unused_settings.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "ops/core/check.h"
#include "runtime/config/experiment.h"

namespace pesc {
namespace {

// A valid experiment of nine lines; overrides change it.
constexpr const char* kGood =
    "name: \"t\"\n"                                                // 1
    "run_dir: \"runs/t\"\n"                                        // 2
    "model { path: \"base\" }\n"                                   // 3
    "train {\n"                                                    // 4
    "  max_steps: 10\n"                                            // 5
    "  global_batch_size: 8 gradient_accumulation_steps: 2\n"      // 6
    "}\n"                                                          // 7
    "data { train { path: \"a.jsonl\" } eval { path: \"b\" } }\n"  // 8
    "moe { num_experts: 4 }\n";                                    // 9

ExperimentConfig parse(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return parse_experiment(text, "e.textproto", overrides);
}

// A folder of such a name would be made where nobody looks for it.
TEST(FoldersToMake, HaveNoNameThatAShellReplaces) {
  for (const char* field : {"run_dir", "data.cache_dir", "model.cache_dir", "debug.routing_record"}) {
    for (const char* path : {"~/runs/x", "~", "~me/x", "$HOME/x", "${SCRATCH}/x"}) {
      const std::string set = str_cat(field, "=\"", path, "\"");
      try {
        (void)parse(kGood, {set});
        ADD_FAILURE() << set;
      } catch (const UsageError& error) {
        EXPECT_NE(std::string(error.what()).find(str_cat(field, " is '", path, "'")), std::string::npos)
            << error.what();
      }
    }
    for (const char* path : {"./~/x", "/data/~me/$x", "a~b", "runs/$USER"})
      EXPECT_NO_THROW((void)parse(kGood, {str_cat(field, "=\"", path, "\"")})) << field << " " << path;
  }
}

// Files of other kinds of configuration.
TEST(OtherText, IsToldWhatAnExperimentIs) {
  for (const auto& [text, expected] :
       {std::pair{"{\"name\": \"x\"}", "e.textproto:1:1: '{' stands where"},
        std::pair{"name: x\ntrain:\n  max_steps: 2\n",
                  "e.textproto:1:7: a text stands in double quotes, not as x"}}) {
    try {
      (void)parse(text);
      ADD_FAILURE() << text;
    } catch (const UsageError& error) {
      EXPECT_NE(std::string(error.what()).find(expected), std::string::npos) << error.what();
    }
  }
}

// One line for each reason, naming the place; values that are the defaults change nothing and say nothing.
TEST(UnusedSettings, AreNamedWithTheirPlace) {
  using Concerns = UnusedSetting::Concerns;
  const auto unused = [](const std::vector<std::string>& overrides) {
    return parse(kGood, overrides).unused;
  };
  EXPECT_TRUE(unused({}).empty());
  EXPECT_TRUE(
      unused({"generate.top_p=1", "parallel.buffer_factor=2", "parallel.overlap_comm=false"}).empty());
  struct Case {
    std::vector<std::string> overrides;
    Concerns concerns;
    std::string text;
  };
  const std::vector<Case> cases{
      {{"train.mode=LORA"},
       Concerns::kAll,
       "e.textproto:9: moe.num_experts has no effect in train.mode LORA"},
      {{"train.mode=FULL", "moe={}", "lora.r=4", "lora.target_modules=q_proj"},
       Concerns::kAll,
       "--set lora.r=4: lora.r, lora.target_modules have no effect in train.mode FULL"},
      {{"train.mode=LORA", "moe={}", "parallel.ep=2"}, Concerns::kAll, "parallel.ep has no effect"},
      {{"train.mode=LORA", "moe={}", "debug.routing_record=x"}, Concerns::kTraining, "debug.routing_record"},
      {{"lora.r=0", "lora.lora_alpha=3"}, Concerns::kAll, "lora.lora_alpha has no effect with lora.r 0"},
      {{"parallel.buffer_factor=3"}, Concerns::kAll, "parallel.buffer_factor has no effect"},
      {{"parallel.expert_exchange=WEIGHTS"},
       Concerns::kAll,
       "parallel.expert_exchange has no effect with parallel.ep 1"},
      {{"train.mode=LORA", "moe={}", "parallel.expert_exchange=AUTO"},
       Concerns::kAll,
       "parallel.expert_exchange has no effect in train.mode LORA"},
      {{"parallel.ep=2", "parallel.expert_exchange=WEIGHTS", "parallel.buffer_factor=3"},
       Concerns::kAll,
       "parallel.buffer_factor has no effect with parallel.expert_exchange WEIGHTS"},
      {{"parallel.overlap_comm=true"},
       Concerns::kAll,
       "parallel.overlap_comm has no effect with parallel.device CPU"},
      {{"debug.share_gpu=true"}, Concerns::kAll, "debug.share_gpu has no effect"},
      {{"train.eval_steps=2", "data.eval=[]"}, Concerns::kTraining, "train.eval_steps has no effect"},
      {{"train.max_eval_samples=2"},
       Concerns::kTraining,
       "train.max_eval_samples has no effect with train.eval_steps 0"},
      {{"train.min_lr_ratio=0.1"}, Concerns::kTraining, "train.min_lr_ratio has no effect"},
      {{"train.loss_spike_ratio=0", "train.on_loss_spike=SKIP"},
       Concerns::kTraining,
       "train.on_loss_spike has no effect"},
      {{"checkpoint.on_save_error=CONTINUE"}, Concerns::kTraining, "checkpoint.on_save_error has no effect"},
      {{"checkpoint.async_save=false"}, Concerns::kTraining, "checkpoint.async_save has no effect"},
      {{"checkpoint.save_steps=10", "checkpoint.keep_every_steps=15"},
       Concerns::kTraining,
       "--set checkpoint.keep_every_steps=15: checkpoint.keep_every_steps is 15, no multiple of "
       "checkpoint.save_steps, "
       "which "
       "is 10: of the steps that are saved, those that are multiples of 30 are kept for good"},
      {{"checkpoint.save_steps=1099511627776", "checkpoint.keep_every_steps=1099511627775"},
       Concerns::kTraining,
       "none is kept for good"},
      {{"recovery.max_restarts=1", "recovery.host_wait_s=5"},
       Concerns::kWithoutLaunch,
       "recovery.max_restarts, recovery.host_wait_s have no effect without `pesc launch`"},
      {{"recovery.smaller_layout=true"}, Concerns::kWithoutLaunch, "recovery.smaller_layout has no effect"},
      {{"generate.top_p=0.5"},
       Concerns::kAnswers,
       "generate.top_p has no effect with generate.temperature 0"},
      {{"generate.seed=2"}, Concerns::kAnswers, "generate.seed has no effect"},
      {{"train.learning_rate=1e-400"}, Concerns::kTraining, "train.learning_rate is 0: no step"},
      {{"lora.lora_alpha=0"}, Concerns::kAll, "lora.lora_alpha is 0: LoRA changes nothing"},
      {{"moe.adapter_scaling=0"}, Concerns::kAll, "moe.adapter_scaling is 0: the experts change nothing"},
  };
  for (const Case& c : cases) {
    const auto found = unused(c.overrides);
    ASSERT_EQ(found.size(), 1U) << c.text;
    EXPECT_NE(found[0].text.find(c.text), std::string::npos) << found[0].text;
    EXPECT_EQ(found[0].concerns, c.concerns) << c.text;
  }
  EXPECT_TRUE(unused({"generate.temperature=1", "generate.top_p=0.5", "generate.seed=2"}).empty());
  EXPECT_TRUE(unused({"checkpoint.save_steps=5", "checkpoint.keep_every_steps=15"}).empty());
  // The ranks themselves end at these.
  EXPECT_TRUE(
      unused({"recovery.step_limit_s=9", "recovery.setup_limit_s=9", "recovery.eval_limit_s=9"}).empty());
  EXPECT_TRUE(unused({"parallel.ep=2", "parallel.buffer_factor=3"}).empty());
  EXPECT_TRUE(unused({"parallel.ep=2", "parallel.expert_exchange=WEIGHTS"}).empty());
  EXPECT_TRUE(unused({"parallel.ep=2", "parallel.expert_exchange=AUTO", "parallel.buffer_factor=3"}).empty());
  EXPECT_FALSE(unused({"parallel.buffer_factor=0.5"}).empty());
  EXPECT_FALSE(unused({"parallel.dispatch_chunks=2"}).empty());
  EXPECT_FALSE(unused({"parallel.gemm_autotune=false"}).empty());
  EXPECT_TRUE(unused({"data.eval[1].path=a.jsonl"}).empty());
  // The resolved text, every default spelled out, says nothing more than its source did.
  EXPECT_EQ(parse(parse(kGood, {"train.mode=LORA"}).text).unused.size(), 1U);
}

// Two files of one name are one group of rows in every report, unless a tag says otherwise.
TEST(UnusedSettings, FilesThatAreReportedTogetherAreNamed) {
  const auto said = [](const std::vector<std::string>& overrides) {
    std::string all;
    for (const UnusedSetting& u : parse(kGood, overrides).unused) {
      EXPECT_EQ(u.concerns, UnusedSetting::Concerns::kEvaluations) << u.text;
      all += u.text;
    }
    return all;
  };
  const std::vector<std::string> two{"data.eval[0].path=a/test.jsonl", "data.eval[1].path=b/test.jsonl.gz"};
  const auto with = [&two](const std::vector<std::string>& more) {
    std::vector<std::string> all = two;
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  EXPECT_EQ(said(two),
            "--set data.eval[1].path=b/test.jsonl.gz: data.eval[1].path is 'b/test.jsonl.gz', and "
            "data.eval[0].path is 'a/test.jsonl': rows of both that have no tag of their own are reported "
            "together as 'test'; give each file its tag");
  EXPECT_EQ(said(with({"data.eval[0].tag=a"})), "");
  EXPECT_EQ(said(with({"data.eval[0].tag=a", "data.eval[1].tag=a"})), "");  // meant
  EXPECT_NE(said(with({"data.eval[0].tag=test"})), "");
  // The files of data.train are evaluated where a fraction of them is.
  const std::vector<std::string> trained{"data.eval=[]", "data.train[0].path=a/t.jsonl",
                                         "data.train[1].path=b/t.jsonl"};
  EXPECT_EQ(said(trained), "");
  std::vector<std::string> fraction = trained;
  fraction.emplace_back("data.validation_fraction=0.1");
  EXPECT_NE(said(fraction).find("data.train[0].path is 'a/t.jsonl'"), std::string::npos);
}

}  // namespace
}  // namespace pesc
