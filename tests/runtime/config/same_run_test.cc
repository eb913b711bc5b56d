// What a checkpoint's configuration must have in common with the experiment that loads it.
#include "runtime/config/same_run.h"

#include <gtest/gtest.h>

#include "ops/core/check.h"
#include "runtime/config/experiment.h"

namespace pesc {
namespace {

constexpr const char* kGood =
    "run_dir: \"runs/t\" model { path: \"base\" } train { max_steps: 10 global_batch_size: 8 "
    "gradient_accumulation_steps: 2 }\n"
    "data { train { path: \"a.jsonl\" } eval { path: \"b\" } } moe { num_experts: 4 }\n";
constexpr const char* kShape =
    "run_dir: \"runs/t\" model { tokenizer: \"t\" shape { vocab_size: 64 hidden_size: 32 intermediate_size: "
    "48 num_hidden_layers: 2 num_attention_heads: 4 } "
    "}\n"
    "train { mode: FULL max_steps: 10 } data { train { path: \"a.jsonl\" } }\n";

std::string text_of(const std::vector<std::string>& overrides = {}, const char* base = kGood) {
  return parse_experiment(base, "e.textproto", overrides).text;
}

using Lines = std::vector<std::string>;
RunDifferences compare(const Lines& before, const Lines& now, CheckpointUse use, const char* base = kGood) {
  return compare_runs(text_of(before, base), text_of(now, base), use);
}

TEST(SameRun, WhatTheModelComputesIsRefusedByEveryVerb) {
  const std::vector<std::pair<const char*, const char*>> changes{
      {"moe.adapter_scaling=3", "moe.adapter_scaling: 1 -> 3"},
      {"moe.num_experts_per_tok=1", "moe.num_experts_per_tok: 2 -> 1"},
      {"moe.num_experts=8", "moe.num_experts: 4 -> 8"},
      {"moe.adapter_dim=64", "moe.adapter_dim: 512 -> 64"},
      {"lora.r=8", "lora.r: 64 -> 8"},
      {"lora.lora_alpha=8", "lora.lora_alpha: 16 -> 8"},
      {"train.mode=LORA", "train.mode: PESC -> LORA"},
      {"train.mode=FULL", "train.mode: PESC -> FULL"},
  };
  for (const CheckpointUse use :
       {CheckpointUse::kResume, CheckpointUse::kEvaluate, CheckpointUse::kAnswer, CheckpointUse::kExport}) {
    for (const auto& [change, line] : changes) EXPECT_EQ(compare({}, {change}, use).refused, Lines{line});
    EXPECT_FALSE(compare({}, {"lora.target_modules=q_proj"}, use).refused.empty());
    for (const char* change :
         {"model.shape.rope_theta=5", "model.shape.rms_norm_eps=1e-3", "model.shape.num_hidden_layers=3",
          "model.shape.tie_word_embeddings=true", "model.shape.max_position_embeddings=4096"})
      EXPECT_EQ(compare({}, {change}, use, kShape).refused.size(), 1U) << change;
  }
}

TEST(SameRun, WhatOnlyTrainingReadsIsRefusedThereAlone) {
  for (const char* change : {"train.seed=2", "train.gradient_accumulation_steps=8", "data.max_seq_length=64",
                             "data.packing=BEST_FIT", "train.learning_rate=1", "train.adam_beta2=0.5",
                             "train.warmup_steps=1", "train.max_grad_norm=1", "data.train[0].weight=2",
                             "moe.adapter_dropout=0.2", "moe.router_aux_loss_coef=0", "lora.lora_dropout=0",
                             "data.train_on=LAST", "data.template_date=2025-01-31"}) {
    const Lines refused = compare({}, {change}, CheckpointUse::kResume).refused;
    const std::string field = std::string(change).substr(0, std::string(change).find('='));
    ASSERT_EQ(refused.size(), 1U) << change;
    EXPECT_TRUE(refused[0].starts_with(field + ": ")) << refused[0];
    for (const CheckpointUse use : {CheckpointUse::kAnswer, CheckpointUse::kExport})
      EXPECT_TRUE(compare({}, {change}, use).refused.empty()) << change;
  }
  // The rows themselves are compared.
  for (const char* change :
       {"data.on_bad_row=SKIP", "data.on_long_row=DROP", "data.cache_dir=tokens", "model.cache_dir=weights"})
    EXPECT_TRUE(compare({}, {change}, CheckpointUse::kResume).refused.empty()) << change;
  EXPECT_EQ(compare({}, {"model.shape.initializer_range=1"}, CheckpointUse::kResume, kShape).refused.size(),
            1U);
  EXPECT_TRUE(
      compare({}, {"model.shape.initializer_range=1"}, CheckpointUse::kExport, kShape).refused.empty());
}

TEST(SameRun, WhatChangesNoNumberIsFree) {
  const Lines free{"run_dir=x",
                   "name=y",
                   "train.logging_steps=1",
                   "train.max_steps=20",
                   "checkpoint.save_total_limit=5",
                   "checkpoint.on_save_error=CONTINUE",
                   "data.chat_template=chatml",  // compared by content
                   "model.path=moved",
                   "model.tokenizer=moved",
                   "train.eval_steps=3",
                   "data.eval=[]",
                   "train.recompute_granularity=FULL",
                   "generate.seed=9",
                   "parallel.buffer_factor=4",
                   "data.train[0].path=moved",
                   "data.train[0].tag=x",
                   "data.train[0].columns.prompt=question",
                   "checkpoint.keep_best=false",
                   "train.early_stopping_patience=0",
                   "recovery.max_restarts=9",
                   "train.on_nonfinite=SKIP"};
  const RunDifferences found = compare({}, free, CheckpointUse::kResume);
  EXPECT_EQ(found.refused, Lines{});
  EXPECT_EQ(found.rounding, Lines{});
  // What the mode does not use.
  EXPECT_TRUE(compare({"train.mode=LORA"}, {"train.mode=LORA", "moe.num_experts=2"}, CheckpointUse::kResume)
                  .refused.empty());
  EXPECT_TRUE(
      compare({"train.mode=FULL"}, {"train.mode=FULL", "lora.r=2"}, CheckpointUse::kResume).refused.empty());
  EXPECT_TRUE(
      compare({"lora.r=0"}, {"lora.r=0", "lora.lora_alpha=2"}, CheckpointUse::kResume).refused.empty());
  // The order of a set.
  const auto targets = [](const char* first, const char* second) {
    return Lines{str_cat("lora.target_modules=[\"", first, "\", \"", second, "\"]")};
  };
  const RunDifferences turned =
      compare(targets("q_proj", "v_proj"), targets("v_proj", "q_proj"), CheckpointUse::kResume);
  EXPECT_EQ(turned.refused, Lines{});
  EXPECT_EQ(turned.rounding, Lines{});
  EXPECT_FALSE(compare(targets("q_proj", "v_proj"), targets("k_proj", "q_proj"), CheckpointUse::kResume)
                   .refused.empty());
}

TEST(SameRun, TheLengthIsPartOfAScheduleThatFallsAndOfAWarmUpThatIsAShareOfIt) {
  for (const char* shape : {"train.lr_scheduler_type=LINEAR", "train.warmup_ratio=0.1"}) {
    EXPECT_EQ(compare({shape}, {shape, "train.max_steps=20"}, CheckpointUse::kResume).refused,
              Lines{"train.max_steps: 10 -> 20"});
    EXPECT_TRUE(compare({shape}, {shape, "train.max_steps=20"}, CheckpointUse::kAnswer).refused.empty());
  }
}

TEST(SameRun, DeviceAndComputeTypeChangeRoundingAlone) {
  const Lines gpu{"parallel.device=CUDA"};
  for (const CheckpointUse use : {CheckpointUse::kResume, CheckpointUse::kAnswer}) {
    const RunDifferences found = compare(gpu, {}, use);
    EXPECT_TRUE(found.refused.empty());
    EXPECT_EQ(found.rounding, (Lines{"parallel.device: CUDA -> CPU", "train.compute_dtype: BF16 -> F32"}));
  }
  EXPECT_TRUE(compare(gpu, {}, CheckpointUse::kExport).rounding.empty());
  // AUTO is what it stands for.
  EXPECT_TRUE(compare({}, {"train.compute_dtype=F32"}, CheckpointUse::kResume).rounding.empty());
  EXPECT_EQ(
      compare(gpu, {"parallel.device=CUDA", "train.compute_dtype=F32"}, CheckpointUse::kResume).rounding,
      (Lines{"train.compute_dtype: BF16 -> F32"}));
  EXPECT_EQ(
      compare(gpu, {"parallel.device=CUDA", "parallel.gemm_autotune=false"}, CheckpointUse::kResume).rounding,
      (Lines{"parallel.gemm_autotune: true -> false"}));
  EXPECT_TRUE(compare({}, {"parallel.gemm_autotune=false"}, CheckpointUse::kResume).rounding.empty());
}

// Other bytes of the base are another model to go on with; an answer is given, and says so.
TEST(SameRun, TheTypeOfFrozenWeightsIsRefusedWhereTheRunGoesOn) {
  const Lines line{"train.frozen_dtype: NF4 -> AUTO"};
  EXPECT_EQ(compare({"train.frozen_dtype=NF4"}, {}, CheckpointUse::kResume).refused, line);
  for (const CheckpointUse use : {CheckpointUse::kEvaluate, CheckpointUse::kAnswer, CheckpointUse::kExport}) {
    const RunDifferences found = compare({"train.frozen_dtype=NF4"}, {}, use);
    EXPECT_EQ(found.refused, Lines{});
    EXPECT_EQ(found.rounding, Lines{});
    EXPECT_EQ(found.frozen, line);
  }
  // Plain types by the name that the user gave.
  EXPECT_EQ(compare({"train.frozen_dtype=NF4"}, {"train.frozen_dtype=F32"}, CheckpointUse::kResume).refused,
            Lines{"train.frozen_dtype: NF4 -> F32"});
  EXPECT_EQ(compare({"train.frozen_dtype=F32"}, {"train.frozen_dtype=FP8"}, CheckpointUse::kAnswer).frozen,
            Lines{"train.frozen_dtype: F32 -> FP8"});
  EXPECT_EQ(compare({"parallel.device=CUDA", "train.compute_dtype=FP8"},
                    {"parallel.device=CUDA", "train.compute_dtype=BF16", "train.frozen_dtype=BF16"},
                    CheckpointUse::kExport)
                .frozen,
            Lines{"train.frozen_dtype: FP8 -> BF16"});
  // The compute type may change, and says so; what AUTO stands for is the same.
  const Lines fp8{"parallel.device=CUDA", "train.compute_dtype=FP8"};
  const RunDifferences found =
      compare(fp8, {"parallel.device=CUDA", "train.compute_dtype=BF16", "train.frozen_dtype=FP8"},
              CheckpointUse::kResume);
  EXPECT_EQ(found.refused, Lines{});
  EXPECT_EQ(found.rounding, Lines{"train.compute_dtype: FP8 -> BF16"});
  for (const auto& [device, plain] : {std::pair("CPU", "F32"), std::pair("CUDA", "BF16")}) {
    const std::string on = str_cat("parallel.device=", device);
    const RunDifferences none =
        compare({on}, {on, str_cat("train.frozen_dtype=", plain)}, CheckpointUse::kResume);
    EXPECT_EQ(none.refused, Lines{});
    EXPECT_EQ(none.rounding, Lines{});
    EXPECT_EQ(compare({on}, {on, str_cat("train.frozen_dtype=", plain)}, CheckpointUse::kExport).frozen,
              Lines{});
  }
}

// On a GPU AUTO of quantised weights is what the GPU can do: what both runs say of it counts.
TEST(SameRun, WhatQuantisedWeightsWereMultipliedIn) {
  const Lines automatic{"parallel.device=CUDA", "train.frozen_dtype=FP8"};
  const auto with = [&](const std::string& type) {
    Lines lines = automatic;
    lines.push_back("train.compute_dtype=" + type);
    return lines;
  };
  const auto rounding = [](const Lines& before, const Lines& after, const std::string& recorded,
                           const std::string& now) {
    Lines lines = compare(before, after, CheckpointUse::kResume).rounding;
    compare_frozen_gemm(recorded, now, lines);
    return lines;
  };
  const Lines to_bf16{"train.compute_dtype: FP8 -> BF16"};
  EXPECT_EQ(rounding(automatic, with("BF16"), "FP8", "BF16"), to_bf16);
  EXPECT_EQ(rounding(with("FP8"), with("BF16"), "FP8", "BF16"), to_bf16);
  EXPECT_EQ(rounding(with("FP8"), automatic, "FP8", "FP8"), Lines{});
  EXPECT_EQ(rounding(automatic, with("FP8"), "FP8", "FP8"), Lines{});
  EXPECT_EQ(rounding(automatic, with("BF16"), "BF16", "BF16"), Lines{});
  EXPECT_EQ(rounding(automatic, automatic, "FP8", "BF16"), to_bf16);  // another GPU
  EXPECT_EQ(rounding(with("F32"), automatic, "F32", "FP8"), Lines{"train.compute_dtype: F32 -> BF16"});
}

// Without the line "  name: value" of a field.
std::string without(std::string text, const std::string& field) {
  const size_t at = text.find("  " + field + ":");
  EXPECT_NE(at, std::string::npos) << field;
  return text.erase(at, text.find('\n', at) + 1 - at);
}

TEST(SameRun, WhereARecordedTextLacksAFieldTodaysDefaultCounts) {
  std::string old = text_of();
  for (const char* field :
       {"max_grad_norm", "recompute_granularity", "num_experts_per_tok", "buffer_factor", "smaller_layout"})
    old = without(old, field);
  EXPECT_TRUE(compare_runs(old, text_of(), CheckpointUse::kResume).refused.empty());
  EXPECT_EQ(compare_runs(old, text_of({"train.max_grad_norm=1"}), CheckpointUse::kResume).refused,
            Lines{"train.max_grad_norm: 0.3 -> 1"});
  EXPECT_EQ(compare_runs(old, text_of({"moe.num_experts_per_tok=1"}), CheckpointUse::kAnswer).refused,
            Lines{"moe.num_experts_per_tok: 2 -> 1"});
}

std::string with(std::string text, const std::string& opening, const std::string& field) {
  const size_t at = text.find(opening);
  EXPECT_NE(at, std::string::npos) << opening;
  return text.insert(at + opening.size(), " " + field);
}

TEST(SameRun, FieldsThatAreGoneSinceAreNoDifferenceAndUnknownOnesAreAnError) {
  const std::string weighed = with(text_of(), "eval {", "weight: 1");
  EXPECT_TRUE(compare_runs(weighed, text_of(), CheckpointUse::kResume).refused.empty());
  EXPECT_THROW(
      (void)compare_runs(with(text_of(), "moe {", "shared_experts: 1"), text_of(), CheckpointUse::kAnswer),
      DataError);
  EXPECT_THROW((void)compare_runs("train { max_steps: ", text_of(), CheckpointUse::kAnswer), DataError);
}

TEST(SameRun, TheRefusalNamesEveryFieldAndBothValues) {
  try {
    refuse_differences({"moe.adapter_scaling: 1 -> 3", "moe.num_experts_per_tok: 2 -> 1"},
                       CheckpointUse::kAnswer);
    FAIL() << "nothing was refused";
  } catch (const UsageError& e) {
    EXPECT_NE(
        std::string(e.what()).find("\n  moe.adapter_scaling: 1 -> 3\n  moe.num_experts_per_tok: 2 -> 1"),
        std::string::npos);
  }
  refuse_differences({}, CheckpointUse::kAnswer);
}

TEST(SameRun, TheManifestsNumbersAreThoseOfItsConfiguration) {
  check_recorded_numbers(text_of(), 3, 24, 1);
  check_recorded_numbers(text_of(), 3, 23, 1);  // the last step of an epoch may have fewer rows
  EXPECT_THROW(check_recorded_numbers(text_of(), 3, 25, 1), DataError);
  EXPECT_THROW(check_recorded_numbers(text_of(), 3, 2, 1), DataError);
  EXPECT_THROW(check_recorded_numbers(text_of(), 3, 24, 2), DataError);
}

}  // namespace
}  // namespace pesc
