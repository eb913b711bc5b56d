#include "runtime/export/model_card.h"

#include <gtest/gtest.h>

#include "runtime/data/row_record.h"
#include "tests/runtime/hf/temp_folder.h"

namespace pesc::testing {
namespace {

TEST(LastEvaluation, IsThatOfTheStepOrBefore) {
  TempFolder run;
  EXPECT_FALSE(last_evaluation(run.path(), 10));
  write_file(run / "metrics.jsonl",
             "{\"kind\": \"step\", \"step\": 1, \"loss\": 3}\n"
             "{\"kind\": \"eval\", \"step\": 5, \"eval_loss_total\": 2.5, \"eval_loss\": {\"a\": 2.25}}\n"
             "{\"kind\": \"eval\", \"step\": 10, \"eval_loss_total\": 1.5}\n"
             "{\"kind\": \"eval\", \"step\": 15, \"eval_loss_total\": 1.25}\n"
             "no JSON\n{\"kind\": \"eval\", \"st");
  EXPECT_FALSE(last_evaluation(run.path(), 4));
  const auto five = last_evaluation(run.path(), 9);
  ASSERT_TRUE(five);
  EXPECT_EQ(five->step, 5);
  EXPECT_EQ(five->total, (RecordedEvaluation::Score{2.5, {}}));
  EXPECT_EQ(five->tags,
            (std::vector<std::pair<std::string, RecordedEvaluation::Score>>{{"a", {2.25, std::nullopt}}}));
  EXPECT_EQ(last_evaluation(run.path(), 10)->total.loss, 1.5);
  EXPECT_EQ(last_evaluation(run.path(), 100)->step, 15);
}

// What a launch that went on from an earlier step computed again does not count.
TEST(LastEvaluation, OfAStepThatWasComputedAgainDoesNotCount) {
  TempFolder run;
  write_file(run / "metrics.jsonl",
             "{\"kind\": \"eval\", \"step\": 10, \"eval_loss_total\": 1.5}\n"
             "{\"kind\": \"launch\", \"step\": 5}\n");
  EXPECT_FALSE(last_evaluation(run.path(), 10));
}

// What `pesc eval` found of a checkpoint counts as well, and before what training found at that step.
TEST(LastEvaluation, OfPescEvalCounts) {
  TempFolder run;
  const auto record = [](int64_t step, double loss, double time, const std::string& more = "") {
    return str_cat("{\"step\": ", step, ", \"time\": ", time, more, ", \"total\": {\"eval_loss\": ", loss,
                   ", \"rows\": 8, \"exact_match\": 0.75}, \"datasets\": {\"a\": {\"eval_loss\": 1.125, "
                   "\"rows\": 0}}}\n");
  };
  write_file(run / "evaluations.jsonl", record(4, 2.75, 50) + record(10, 1.25, 60) +
                                            record(0, 9, 70, ", \"base\": true") + record(20, 0.5, 80));
  EXPECT_FALSE(last_evaluation(run.path(), 3));
  EXPECT_EQ(last_evaluation(run.path(), 9)->step, 4);
  const auto ten = last_evaluation(run.path(), 19);
  ASSERT_TRUE(ten);
  EXPECT_EQ(ten->step, 10);
  EXPECT_EQ(ten->total, (RecordedEvaluation::Score{1.25, 0.75}));
  EXPECT_EQ(ten->tags,
            (std::vector<std::pair<std::string, RecordedEvaluation::Score>>{{"a", {1.125, std::nullopt}}}));
  write_file(run / "metrics.jsonl",
             "{\"kind\": \"eval\", \"step\": 10, \"eval_loss_total\": 1.5}\n"
             "{\"kind\": \"eval\", \"step\": 15, \"eval_loss_total\": 1.375}\n");
  EXPECT_EQ(last_evaluation(run.path(), 12)->total, (RecordedEvaluation::Score{1.25, 0.75}));
  EXPECT_EQ(last_evaluation(run.path(), 19)->total, (RecordedEvaluation::Score{1.375, {}}));
  // Step 10 was computed again after it had been evaluated; step 4 was not.
  write_file(run / "metrics.jsonl", "{\"kind\": \"launch\", \"step\": 5, \"time\": 75}\n");
  EXPECT_EQ(last_evaluation(run.path(), 19)->step, 4);
  EXPECT_EQ(last_evaluation(run.path(), 20)->step, 20);
  write_file(run / "evaluations.jsonl", "{\"step\": 1}\n");
  EXPECT_THROW((void)last_evaluation(run.path(), 19), DataError);
}

ModelCard small_card() {
  ModelCard card;
  card.config.name = "my model";
  card.config.model.path = "models/base";
  card.config.pesc.moe = {
      .num_experts = 8, .num_experts_per_tok = 2, .adapter_dim = 64, .adapter_scaling = 1};
  card.config.pesc.lora = {.r = 4, .lora_alpha = 8, .lora_dropout = 0, .target_modules = {Linear::kQ}};
  card.model_type = "llama";
  card.dtype = "bfloat16";
  return card;
}

CheckpointState small_state() {
  CheckpointState state;
  state.step = 12;
  state.consumed_samples = 96;
  state.base_path = "models/ba`se|x";
  state.base_digest = "0123abcd+tokenizer:ef45";
  state.config_text = "name: \"my model\"\nrun_dir: \"runs/x\"\n";
  state.versions["openblas"] = "0.3.21";
  state.extra[kTrainingRows] = "40 00000000000000aa data/my train.jsonl\n";
  return state;
}

TEST(ModelCard, SaysWhatTheRunSays) {
  ModelCard card = small_card();
  card.config.model.adapter = "an/adapter";
  card.prompt = "the chat template x.jinja";
  card.evaluation = RecordedEvaluation{10, {1.5, 0.625}, {{"code", {1.25, 0.5}}, {"corpus", {2, {}}}}};
  const std::string text = model_card_text(card, small_state());
  for (const char* part : {"# my model\n", "step 12", "`models/ba'se'x`", "`0123abcd`", "`ef45`",
                           "| rows | 96 |", "r 4, alpha 8, on q_proj", "8 a layer, 2 for each token",
                           "| `data/my train.jsonl` | 40 | `00000000000000aa` |", "| all | 1.5000 | 0.6250 |",
                           "| `code` | 1.2500 | 0.5000 |", "| `corpus` | 2.0000 | |",
                           "| openblas | `0.3.21` |", "    run_dir: \"runs/x\"\n", "trust_remote_code=True",
                           "library_name: transformers", "With vLLM: by design, not run",
                           "began with the adapter `an/adapter`", "`the chat template x.jinja`"})
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
}

TEST(ModelCard, TheCardSaysNothingThatTheCheckpointDoesNot) {
  CheckpointState state = small_state();
  state.extra.clear();
  const std::string text = model_card_text(small_card(), state);
  EXPECT_EQ(text.find("## Evaluation"), std::string::npos);
  EXPECT_EQ(text.find("## Data"), std::string::npos);
  EXPECT_EQ(text.find("## Prompt"), std::string::npos);
  EXPECT_EQ(text.find("adapter `"), std::string::npos);
}

TEST(ModelCard, OfAnAdapterSaysWhereTheDenseWeightsGo) {
  ModelCard card = small_card();
  card.format = ExportFormat::kPeft;
  std::string text = model_card_text(card, small_state());
  EXPECT_NE(text.find("ln -s BASE/*.safetensors* FOLDER/base/"), std::string::npos);
  EXPECT_NE(text.find("library_name: peft"), std::string::npos);
  EXPECT_NE(text.find("With vLLM: by design, not run; it takes no experts"), std::string::npos);
  EXPECT_NE(text.find("AutoTokenizer.from_pretrained(\"FOLDER/base\", trust_remote_code=True)"),
            std::string::npos);
  card.config.pesc.mode = TrainMode::kLora;
  text = model_card_text(card, small_state());
  EXPECT_EQ(text.find("FOLDER/base"), std::string::npos);
  EXPECT_EQ(text.find("trust_remote_code"), std::string::npos);
  EXPECT_NE(text.find("With vLLM: by design, not run"), std::string::npos);
  EXPECT_EQ(text.find("tokenization_pesc.py"), std::string::npos);
  card.names_tokenizer_class = true;
  text = model_card_text(card, small_state());
  EXPECT_NE(text.find("here that of `tokenization_pesc.py`"), std::string::npos);
  card.loads_tokenizer = false;
  text = model_card_text(card, small_state());
  EXPECT_EQ(text.find("AutoTokenizer"), std::string::npos);
  EXPECT_EQ(text.find("lm_eval"), std::string::npos);
  EXPECT_NE(text.find("The tokenizer has no tokenizer.json"), std::string::npos);
}

TEST(ModelCard, SaysWhatTheFrozenWeightsWereQuantisedTo) {
  ModelCard card = small_card();
  EXPECT_EQ(model_card_text(card, small_state()).find("quantised"), std::string::npos);
  card.config.train.frozen_dtype = FrozenFormat::kNF4;
  card.merge_into = MergeInto::kOriginal;
  std::string text = model_card_text(card, small_state());
  EXPECT_NE(text.find("quantised to NF4"), std::string::npos) << text;
  EXPECT_NE(text.find("(`--merge_into ORIGINAL`). This is not the model"), std::string::npos) << text;
  card.evaluation = RecordedEvaluation{10, {1.5, {}}, {}};
  text = model_card_text(card, small_state());
  EXPECT_NE(text.find("at step 10 and with its quantised weights: mean loss"), std::string::npos) << text;
  EXPECT_NE(text.find("| all | 1.5000 |\n"), std::string::npos) << text;
  EXPECT_EQ(text.find("exact match"), std::string::npos) << text;
  card.merge_into = MergeInto::kDequantised;
  text = model_card_text(card, small_state());
  EXPECT_NE(text.find("(`--merge_into DEQUANTISED`): but for rounding"), std::string::npos) << text;
  EXPECT_EQ(text.find("ORIGINAL"), std::string::npos) << text;
  EXPECT_EQ(text.find("quantised activations"), std::string::npos) << text;
  card.config.train.frozen_gemm = FrozenGemm::kFP8;
  text = model_card_text(card, small_state());
  EXPECT_NE(text.find("quantised activations"), std::string::npos) << text;
  card.merge_into.reset();
  card.config.train.frozen_dtype = FrozenFormat::kFP8;
  card.format = ExportFormat::kPeft;
  text = model_card_text(card, small_state());
  EXPECT_NE(text.find("quantised to FP8"), std::string::npos) << text;
  EXPECT_NE(text.find("The adapter was trained on weights quantised so"), std::string::npos) << text;
}

TEST(MergeIntoName, IsOneOfTwo) {
  EXPECT_EQ(merge_into("original"), MergeInto::kOriginal);
  EXPECT_EQ(merge_into("DEQUANTISED"), MergeInto::kDequantised);
  try {
    (void)merge_into("BASE");
    ADD_FAILURE() << "no error";
  } catch (const UsageError& error) {
    for (const char* part : {"--merge_into 'BASE'", "--merge_into DEQUANTISED (", "--merge_into ORIGINAL ("})
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, part, error.what());
  }
}

TEST(ExportFormatName, IsOneOfThree) {
  EXPECT_EQ(export_format("peft"), ExportFormat::kPeft);
  for (const ExportFormat f : {ExportFormat::kHf, ExportFormat::kPeft, ExportFormat::kCamelidae})
    EXPECT_EQ(export_format(format_name(f)), f);
  EXPECT_THROW((void)export_format("GGUF"), UsageError);
}

}  // namespace
}  // namespace pesc::testing
