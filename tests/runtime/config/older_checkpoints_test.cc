// Checkpoints of older versions: a field that was added since with a default refuses none of them; one with
// the old field names is refused by name.
#include <google/protobuf/descriptor.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <memory>

#include "configs/schema/experiment.pb.h"
#include "ops/core/check.h"
#include "runtime/config/experiment.h"
#include "runtime/config/same_run.h"

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
// Clears every field that has its default, at any depth.
void clear_defaults(google::protobuf::Message& message) {
  const auto* r = message.GetReflection();
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  r->ListFields(message, &fields);
  for (const auto* f : fields) {
    if (f->is_repeated()) continue;
    if (f->message_type() != nullptr) {
      clear_defaults(*r->MutableMessage(&message, f));
      continue;
    }
    if (!f->has_default_value()) continue;
    const std::unique_ptr<google::protobuf::Message> fresh(message.New());
    std::string is, usual;
    google::protobuf::TextFormat::PrintFieldValueToString(message, f, -1, &is);
    google::protobuf::TextFormat::PrintFieldValueToString(*fresh, f, -1, &usual);
    if (is == usual) r->ClearField(&message, f);
  }
}

// As if every field with a default had been added to the schema after the checkpoint was written.
TEST(OlderCheckpoints, AFieldAddedWithADefaultDoesNotRefuseOlderCheckpoints) {
  for (const char* base : {kGood, kShape}) {
    proto::Experiment e;
    ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(text_of({}, base), &e));
    clear_defaults(e);
    std::string old;
    google::protobuf::TextFormat::PrintToString(e, &old);
    ASSERT_EQ(old.find("max_grad_norm"), std::string::npos);
    ASSERT_NE(text_of({}, base).find("max_grad_norm"), std::string::npos);
    for (const CheckpointUse use :
         {CheckpointUse::kResume, CheckpointUse::kEvaluate, CheckpointUse::kAnswer, CheckpointUse::kExport}) {
      const RunDifferences found = compare_runs(old, text_of({}, base), use);
      EXPECT_EQ(found.refused, Lines{});
      EXPECT_EQ(found.rounding, Lines{});
    }
    // Once it has another value, it is a difference like any other.
    for (const char* change : {"train.max_grad_norm=1", "train.weight_decay=0.5", "data.max_seq_length=64",
                               "train.gradient_accumulation_steps=4"}) {
      const Lines refused = compare_runs(old, text_of({change}, base), CheckpointUse::kResume).refused;
      const std::string field = std::string(change).substr(0, std::string(change).find('='));
      ASSERT_EQ(refused.size(), 1U) << change;
      EXPECT_TRUE(refused[0].starts_with(field + ": ")) << refused[0];
    }
  }
}

TEST(OlderCheckpoints, ACheckpointWithTheOldFieldNamesIsRefusedByName) {
  const std::string old =
      "run_dir: \"r\"\nmodel {\n  path: \"base\"\n}\ntrain {\n  steps: 10\n  seq_len: 64\n  schedule: "
      "CONSTANT\n}\n"
      "moe {\n  experts: 4\n}\n";
  for (const CheckpointUse use :
       {CheckpointUse::kResume, CheckpointUse::kEvaluate, CheckpointUse::kAnswer, CheckpointUse::kExport}) {
    try {
      (void)compare_runs(old, text_of(), use);
      FAIL() << "nothing was refused";
    } catch (const DataError& e) {
      const std::string said = e.what();
      for (const char* words :
           {"written by a pesc with the old field names", "'steps' in Train is train.max_steps now",
            "use the pesc that wrote it, or another run_dir"})
        EXPECT_NE(said.find(words), std::string::npos) << said;
    }
  }
}

}  // namespace
}  // namespace pesc
