// What is said of a checkpoint that another experiment loads.
#include "runtime/same_run.h"

#include <gtest/gtest.h>

#include <memory>

#include "ops/core/check.h"
#include "runtime/config/compute_types.h"
#include "tests/runtime/checkpoint/thread_communicator.h"

namespace pesc {
namespace {

using Notes = std::vector<std::string>;

class OneRank : public testing::ThreadCommunicator {
 public:
  explicit OneRank(Group& group) : ThreadCommunicator(group, 0), group_(group) {}
  std::unique_ptr<Communicator> split(int, const std::string&) override {
    return std::make_unique<OneRank>(group_);
  }

 private:
  Group& group_;
};

class NotesOfACheckpoint : public ::testing::Test {
 protected:
  // Of a base whose folder holds `format`, or plain weights.
  Job job(std::optional<FrozenFormat> format, const std::vector<std::string>& overrides) {
    Job job;
    job.config = parse_experiment(
        "run_dir: \"runs/t\" model { path: \"base\" } train { max_steps: 10 } data { train { path: "
        "\"a.jsonl\" } }",
        "e.textproto", overrides);
    if (format) job.model.quantized = QuantizedBase{*format, {}};
    use_folder_format(job.config, job.model);
    job.ranks = std::make_unique<Ranks>(world_, 1, 1, 1);
    return job;
  }

  // Of the first job's checkpoint, loaded for the second.
  static Notes notes(const Job& run, const Job& now, CheckpointUse use) {
    LoadedCheckpoint checkpoint;
    checkpoint.world = 1;
    checkpoint.state.step = checkpoint.state.consumed_samples = 3;
    checkpoint.state.seed = run.config.train.seed;
    checkpoint.state.tp = checkpoint.state.ep = 1;
    checkpoint.state.config_text = run.config.text;
    checkpoint.state.base_path = run.config.model.path;
    checkpoint.state.base_digest = "base";
    return check_same_run(now, checkpoint, {"base", "base"}, use).warnings;
  }

 private:
  testing::ThreadCommunicator::Group group_{1};
  OneRank world_{group_};
};

TEST_F(NotesOfACheckpoint, AnotherFrozenTypeIsAnotherModelUnlessTheBaseIsQuantisedAlready) {
  const Job quantised = job(std::nullopt, {"train.frozen_dtype=NF4"});
  const Job plain = job(std::nullopt, {"train.frozen_dtype=F32"});
  for (const CheckpointUse use : {CheckpointUse::kEvaluate, CheckpointUse::kAnswer, CheckpointUse::kExport}) {
    const Notes said = notes(quantised, plain, use);
    ASSERT_EQ(said.size(), 1U);
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "train.frozen_dtype: NF4 -> F32", said[0]);
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "on frozen weights of another type", said[0]);
    EXPECT_EQ(notes(quantised, quantised, use), Notes{});
  }
  for (const auto& [format, name] : {std::pair{FrozenFormat::kFP8, "FP8"}, {FrozenFormat::kNF4, "NF4"}}) {
    const Job held = job(format, {});
    const Job dequantised = job(format, {"train.frozen_dtype=F32"});
    for (const CheckpointUse use : {CheckpointUse::kEvaluate, CheckpointUse::kAnswer}) {
      const std::string begin =
          "the checkpoint of step 3 was saved under other conditions; the mathematics is the same, rounding "
          "is "
          "not (saved -> now): train.frozen_dtype: ";
      EXPECT_EQ(notes(held, dequantised, use), Notes{str_cat(begin, name, " -> F32")});
      EXPECT_EQ(notes(dequantised, held, use), Notes{str_cat(begin, "F32 -> ", name)});
    }
    EXPECT_EQ(notes(held, dequantised, CheckpointUse::kExport), Notes{});
    EXPECT_THROW((void)notes(held, dequantised, CheckpointUse::kResume), UsageError);
  }
}

}  // namespace
}  // namespace pesc
