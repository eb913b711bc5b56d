// --set, and the nearest name.
#include "runtime/config/overrides.h"

#include <gtest/gtest.h>

#include "configs/schema/experiment.pb.h"
#include "ops/core/check.h"
#include "runtime/config/unknown_names.h"

namespace pesc {
namespace {

proto::Experiment start() {
  proto::Experiment e;
  e.mutable_train()->set_max_steps(10);
  e.mutable_train()->set_seed(3);
  e.mutable_data()->add_train()->set_path("a");
  e.mutable_data()->add_train()->set_path("b");
  e.mutable_lora()->add_target_modules("q_proj");
  e.mutable_lora()->add_target_modules("k_proj");
  return e;
}

proto::Experiment with(const std::vector<std::string>& assignments) {
  proto::Experiment e = start();
  for (const std::string& a : assignments) apply_override(a, e);
  return e;
}

std::vector<std::string> targets(const std::string& assignment) {
  const proto::Experiment e = with({assignment});
  return {e.lora().target_modules().begin(), e.lora().target_modules().end()};
}

std::string refusal(const std::string& assignment) {
  proto::Experiment e = start();
  try {
    apply_override(assignment, e);
  } catch (const UsageError& error) {
    return error.what();
  }
  ADD_FAILURE() << assignment << " was not refused";
  return "";
}

using Strings = std::vector<std::string>;

TEST(Overrides, AnOverrideSetsOneFieldAndLeavesTheOthers) {
  EXPECT_EQ(with({"train.learning_rate=1e-3"}).train().learning_rate(), 1e-3);
  EXPECT_EQ(with({"train.max_steps=20"}).train().max_steps(), 20);
  EXPECT_EQ(with({"train.max_steps=20", "train.max_steps=30"}).train().max_steps(), 30);
  EXPECT_EQ(with({"train.max_steps=20"}).train().seed(), 3U);  // the others stay
  EXPECT_EQ(with({"train.lr_scheduler_type=COSINE"}).train().lr_scheduler_type(),
            proto::LrSchedulerType::COSINE);
  EXPECT_EQ(with({"parallel.tp=2"}).parallel().tp(), 2);  // a group that was not there
  EXPECT_TRUE(with({"model.shape.tie_word_embeddings=true"}).model().shape().tie_word_embeddings());
  EXPECT_EQ(with({"name=a b=c: 'd' \"e\\"}).name(), "a b=c: 'd' \"e\\");
  EXPECT_EQ(with({"name=\"a\\tb\""}).name(), "a\tb");
  EXPECT_TRUE(with({"name="}).has_name());
  EXPECT_EQ(with({"name="}).name(), "");
}

TEST(Overrides, OneOfFieldsThatExcludeEachOtherReplacesTheOther) {
  const proto::Experiment e = with({"train.num_train_epochs=2"});
  EXPECT_FALSE(e.train().has_max_steps());
  EXPECT_EQ(e.train().num_train_epochs(), 2);
  EXPECT_FALSE(with({"model.path=x", "model.shape.vocab_size=5"}).model().has_path());
}

// In one command line nobody can tell which of the two is meant; one that replaces a field of the file is
// meant.
TEST(Overrides, TwoThatExcludeEachOtherAreRefusedByBothNames) {
  const auto refused = [](const std::vector<std::string>& assignments) {
    try {
      check_overrides_agree(assignments, start());
    } catch (const UsageError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(refused({"train.max_steps=5", "train.seed=1", "train.num_train_epochs=2"}),
            "--set train.num_train_epochs=2: train.num_train_epochs and train.max_steps (--set "
            "train.max_steps=5) exclude each other; "
            "leave one out");
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "model.shape and model.path (--set model.path=x)",
                      refused({"model.path=x", "model.shape.vocab_size=5"}));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "train.warmup_ratio and train.warmup_steps",
                      refused({"train={max_steps: 5 warmup_steps: 1}", "train.warmup_ratio=0.5"}));
  EXPECT_EQ(refused({"train.max_steps=5", "train.max_steps=6", "train.warmup_steps=1", "model.path=x"}), "");
  EXPECT_EQ(refused({"train.num_train_epochs=5"}), "");  // start() has steps
  EXPECT_EQ(refused({"model.shape.vocab_size=5", "model.shape.hidden_size=6", "data.train[0].path=a",
                     "data.eval=[]"}),
            "");
}

TEST(Overrides, AListIsSetWholeOrByIndex) {
  EXPECT_EQ(targets("lora.target_modules=v_proj, o_proj"), (Strings{"v_proj", "o_proj"}));
  EXPECT_EQ(targets("lora.target_modules=[v_proj,o_proj]"), (Strings{"v_proj", "o_proj"}));
  EXPECT_EQ(targets("lora.target_modules=[\"v_proj\"]"), (Strings{"v_proj"}));
  EXPECT_EQ(targets("lora.target_modules=[]"), Strings{});
  EXPECT_EQ(targets("lora.target_modules[0]=v_proj"), (Strings{"v_proj", "k_proj"}));
  EXPECT_EQ(targets("lora.target_modules[1]=v_proj"), (Strings{"q_proj", "v_proj"}));
  EXPECT_EQ(targets("lora.target_modules[2]=v_proj"), (Strings{"q_proj", "k_proj", "v_proj"}));
}

TEST(Overrides, AListOfGroupsIsSetWholeOrByIndex) {
  EXPECT_EQ(with({"data.train[1].path=c"}).data().train(1).path(), "c");
  EXPECT_EQ(with({"data.train[1].path=c"}).data().train(0).path(), "a");
  const proto::Experiment more = with({"data.train[2].path=c", "data.train[2].weight=0.5"});
  ASSERT_EQ(more.data().train_size(), 3);
  EXPECT_EQ(more.data().train(2).weight(), 0.5);
  const proto::Experiment all = with({"data.train=[{path: \"x\" weight: 2}, {path: \"y\"}, {path: \"z\"}]"});
  ASSERT_EQ(all.data().train_size(), 3);
  EXPECT_EQ(all.data().train(0).weight(), 2);
  EXPECT_EQ(all.data().train(2).path(), "z");
  const proto::Experiment first = with({"data.train[0]={path: \"x\"}"});
  ASSERT_EQ(first.data().train_size(), 2);
  EXPECT_EQ(first.data().train(0).path(), "x");
  EXPECT_EQ(first.data().train(1).path(), "b");
  EXPECT_EQ(with({"data.train=[]"}).data().train_size(), 0);
  EXPECT_EQ(with({"moe={num_experts: 2}"}).moe().num_experts(), 2);
}

TEST(Overrides, RefusesWhatItCannotSet) {
  const std::vector<std::pair<std::string, Strings>> table{
      {"train.learning_rte=1", {"no field 'learning_rte' in Train", "did you mean 'learning_rate'?"}},
      {"trian.max_steps=1", {"no field 'trian' in Experiment", "did you mean 'train'?"}},
      {"data.train[0].pth=x", {"no field 'pth' in Source", "'path'"}},
      {"data.train=[{pth: \"x\"}]", {"no field 'pth' in Source", "'path'"}},
      {"train.mode=PESK", {"'PESK' is not a value of mode", "did you mean 'PESC'?", "PESC, LORA, FULL"}},
      {"train.max_steps=abc", {"Expected integer"}},
      {"train.max_steps=1.5", {"Expected integer"}},
      {"train.seed=-1", {"the value is negative", "whole numbers from 0 on"}},
      {"train.max_steps=", {"'max_steps' has no value"}},
      {"train.max_steps=5 seed: 7", {"more than one value"}},
      {"train.max_steps=5 max_steps: 7", {"'max_steps' is set twice"}},
      {"train.max_steps[0]=5", {"'max_steps' is not a list"}},
      {"train[0].max_steps=5", {"'train' is not a list"}},
      {"train.max_steps.x=5", {"'max_steps' is a value and has no fields"}},
      {"train=5", {"'train' is a group of fields", "write train.field=value"}},
      {"data.train=x", {"'train' is a group of fields (path, tag, weight, columns)", "train=[{...}]"}},
      {"data.train.path=x", {"'train' is a list with 2 entries", "train[0] to train[2]"}},
      {"data.train[3].path=x", {"'train' is a list with 2 entries"}},
      {"data.train[3]={path: \"x\"}", {"'train' is a list with 2 entries"}},
      {"data.eval.path=x", {"'eval' is a list with 0 entries", "write eval[0]"}},
      {"data.train[0]=[{path: \"x\"}]", {"'train' is a group of fields"}},
      {"data.train[0]={path: \"x\"} train: {path: \"y\"}", {"more than one value"}},
      {"lora.target_modules=[q_proj", {"no closing ]"}},
      {"lora.target_modules=q_proj,,k_proj", {"empty entry"}},
      {"lora.target_modules=", {"empty entry"}},
      {"lora.target_modules[9]=q_proj", {"'target_modules' is a list with 2 entries"}},
      {"train.max_steps", {"write --set path.to.field=value"}},
      {"=5", {"write --set path.to.field=value"}},
      {"train..max_steps=5", {"'' is not a field name"}},
      {"train.max_steps =5", {"'max_steps ' is not a field name"}},
      {"data.train[x].path=a", {"'train[x]' is not a field name"}},
      {"data.train[].path=a", {"'train[]' is not a field name"}},
      {"data.train[0.path=a", {"'train[0' is not a field name"}},
      {"data.train[9999999].path=a", {"is not a field name"}},
      {"[0].path=a", {"'[0]' is not a field name"}},
      {"train.st-eps=5", {"no field 'st-eps' in Train"}},
      {"train.st+eps=5", {"'st+eps' is not a field name"}},
  };
  for (const auto& [assignment, fragments] : table) {
    const std::string message = refusal(assignment);
    EXPECT_EQ(message.find("--set " + assignment + ": "), 0U) << message;
    for (const std::string& fragment : fragments) {
      EXPECT_NE(message.find(fragment), std::string::npos) << "wanted '" << fragment << "' in: " << message;
    }
  }
}

TEST(Overrides, ARefusedOneChangesNothingElse) {
  proto::Experiment e = start();
  const std::string before = e.SerializeAsString();
  EXPECT_THROW(apply_override("train.max_steps=5 seed: 7", e), UsageError);
  EXPECT_THROW(apply_override("data.train[1]={pth: 1}", e), UsageError);
  EXPECT_EQ(e.SerializeAsString(), before);
}

TEST(NearestName, IsTheOneWithTheFewestEdits) {
  EXPECT_EQ(nearest_name("stesp", {"epochs", "steps", "seed"}), "steps");
  EXPECT_EQ(nearest_name("learning_rte", {"learning_rate", "lr"}), "learning_rate");
  EXPECT_EQ(nearest_name("x", {"ab", "cd"}), "ab");
  EXPECT_EQ(nearest_name("x", {}), "");
}

}  // namespace
}  // namespace pesc
