// train.frozen_dtype for a folder that is quantised already: the folder's own format, the values, or a refusal.
#include <gtest/gtest.h>

#include "ops/core/check.h"
#include "runtime/config/compute_types.h"
#include "runtime/config/same_run.h"

namespace pesc {
namespace {

constexpr const char* kExperiment =
    "run_dir: \"runs/t\" model { path: \"base\" } train { max_steps: 10 }\n"
    "data { train { path: \"a.jsonl\" } }\n";
const std::string kCuda = "parallel.device=CUDA";

ExperimentConfig on_folder(FrozenFormat format, const std::vector<std::string>& overrides = {}) {
  ExperimentConfig config = parse_experiment(kExperiment, "e.textproto", overrides);
  ModelConfig model;
  model.quantized = QuantizedBase{format, {}};
  use_folder_format(config, model);
  return config;
}

TEST(FolderFormat, AutoAndItsOwnNameAreTheFolders) {
  for (const auto& [format, name] : {std::pair{FrozenFormat::kFP8, "FP8"},
                                     {FrozenFormat::kFP8Blocks, "FP8"},
                                     {FrozenFormat::kNF4, "NF4"},
                                     {FrozenFormat::kNF4Single, "NF4"}}) {
    const std::string own = str_cat("train.frozen_dtype=", name);
    const ExperimentConfig config = on_folder(format);
    EXPECT_EQ(config.train.frozen_dtype, format);
    EXPECT_EQ(on_folder(format, {own}).train.frozen_dtype, format);
    // What a checkpoint records of it.
    EXPECT_EQ(config.text, on_folder(format, {own}).text);
    EXPECT_NE(config.text.find(str_cat("frozen_dtype: ", name)), std::string::npos) << config.text;
    EXPECT_TRUE(compare_runs(config.text, on_folder(format).text, CheckpointUse::kResume).refused.empty());
    const auto refused =
        compare_runs(config.text, on_folder(format, {"train.frozen_dtype=F32"}).text, CheckpointUse::kResume)
            .refused;
    EXPECT_EQ(refused, std::vector<std::string>{str_cat("train.frozen_dtype: ", name, " -> F32")});
  }
}

TEST(FolderFormat, PlainTypesDequantise) {
  EXPECT_FALSE(on_folder(FrozenFormat::kNF4, {"train.frozen_dtype=F32"}).train.frozen_dtype.has_value());
  EXPECT_FALSE(
      on_folder(FrozenFormat::kFP8Blocks, {kCuda, "train.frozen_dtype=BF16"}).train.frozen_dtype.has_value());
  EXPECT_FALSE(on_folder(FrozenFormat::kFP8, {"train.mode=FULL", "train.frozen_dtype=F32"})
                   .train.frozen_dtype.has_value());
}

TEST(FolderFormat, Fp8IsComputedWhereTheFormatAllows) {
  EXPECT_EQ(on_folder(FrozenFormat::kFP8, {kCuda}).train.frozen_gemm, std::nullopt);  // the device decides
  EXPECT_EQ(on_folder(FrozenFormat::kFP8, {kCuda, "train.compute_dtype=BF16"}).train.frozen_gemm,
            FrozenGemm::kDequantized);
  EXPECT_EQ(on_folder(FrozenFormat::kFP8Blocks, {kCuda}).train.frozen_gemm, FrozenGemm::kDequantized);
  EXPECT_EQ(on_folder(FrozenFormat::kFP8Blocks, {kCuda, "train.frozen_dtype=FP8"}).train.frozen_gemm,
            FrozenGemm::kDequantized);
  EXPECT_EQ(on_folder(FrozenFormat::kNF4, {kCuda}).train.frozen_gemm, FrozenGemm::kDequantized);
  const ExperimentConfig nf4 = on_folder(FrozenFormat::kNF4Single, {kCuda, "train.compute_dtype=FP8"});
  EXPECT_EQ(nf4.train.frozen_dtype, FrozenFormat::kNF4Single);
  EXPECT_EQ(nf4.train.frozen_gemm, FrozenGemm::kFP8);
  EXPECT_EQ(on_folder(FrozenFormat::kFP8).train.frozen_gemm, FrozenGemm::kDequantized);  // on the CPU
}

TEST(FolderFormat, WhatWouldQuantiseAnewIsRefused) {
  struct Bad {
    FrozenFormat format;
    std::vector<std::string> overrides;
    std::vector<const char*> words;
  };
  for (const Bad& bad : std::vector<Bad>{{FrozenFormat::kFP8,
                                          {"train.frozen_dtype=NF4"},
                                          {"train.frozen_dtype is NF4, but", "FP8 with a scale for each row",
                                           "not quantised a second time", "train.frozen_dtype: F32"}},
                                         {FrozenFormat::kNF4,
                                          {kCuda, "train.frozen_dtype=FP8"},
                                          {"NF4 with double", "train.frozen_dtype: BF16"}},
                                         {FrozenFormat::kFP8Blocks,
                                          {kCuda, "train.compute_dtype=FP8"},
                                          {"train.compute_dtype is FP8", "blocks of 128 x 128", "set BF16"}},
                                         {FrozenFormat::kNF4Single,
                                          {"train.mode=FULL"},
                                          {"train.mode is FULL", "train.frozen_dtype: F32"}}}) {
    try {
      (void)on_folder(bad.format, bad.overrides);
      ADD_FAILURE() << bad.overrides.front();
    } catch (const UsageError& error) {
      for (const char* word : bad.words) EXPECT_PRED_FORMAT2(::testing::IsSubstring, word, error.what());
    }
  }
}

TEST(FolderFormat, OtherFoldersChangeNothing) {
  ExperimentConfig config = parse_experiment(kExperiment, "e.textproto", {});
  const std::string text = config.text;
  use_folder_format(config, ModelConfig());
  EXPECT_EQ(config.text, text);
  EXPECT_FALSE(config.train.frozen_dtype.has_value());
}

}  // namespace
}  // namespace pesc
