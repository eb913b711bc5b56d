// Names of an older pesc and of other programs: every one is answered, and with a field or value that there
// is.
#include "runtime/config/field_aliases.h"

#include <google/protobuf/descriptor.h>
#include <gtest/gtest.h>

#include <set>

#include "configs/schema/experiment.pb.h"
#include "ops/core/check.h"
#include "runtime/config/experiment.h"
#include "runtime/config/field_alias_table.h"

namespace pesc {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

// The field at a path from the experiment's root; nullptr: there is none.
const FieldDescriptor* field_at(std::string_view path) {
  const Descriptor* message = proto::Experiment::descriptor();
  const FieldDescriptor* field = nullptr;
  for (size_t begin = 0; begin <= path.size();) {
    if (message == nullptr) return nullptr;
    const size_t end = std::min(path.find('.', begin), path.size());
    field = message->FindFieldByName(std::string(path.substr(begin, end - begin)));
    if (field == nullptr) return nullptr;
    message = field->message_type();
    begin = end + 1;
  }
  return field;
}

void collect(const Descriptor& message, std::set<const Descriptor*>& out) {
  out.insert(&message);
  for (int i = 0; i < message.field_count(); ++i)
    if (message.field(i)->message_type() != nullptr) collect(*message.field(i)->message_type(), out);
}

std::string refusal(const std::string& text, const std::vector<std::string>& overrides = {}) {
  try {
    (void)parse_experiment(text, "e.textproto", overrides);
  } catch (const UsageError& e) {
    return e.what();
  }
  return "nothing was refused";
}

template <class Table>
void check_table(const Table& table) {
  std::set<const Descriptor*> messages;
  collect(*proto::Experiment::descriptor(), messages);
  std::set<std::pair<std::string_view, std::string_view>> seen;
  for (const aliases::Field& f : table) {
    SCOPED_TRACE(f.name);
    EXPECT_TRUE(seen.emplace(f.message, f.name).second) << "stands in the table twice";
    EXPECT_FALSE(f.path.empty() && f.advice.empty());
    if (!f.path.empty()) {
      EXPECT_NE(field_at(f.path), nullptr) << f.path;
    }
    bool known = f.message.empty();
    for (const Descriptor* m : messages) {
      if (m->name() != f.message) continue;
      known = true;
      EXPECT_EQ(m->FindFieldByName(std::string(f.name)), nullptr) << "is a field of " << f.message;
    }
    EXPECT_TRUE(known) << f.message;
    const std::string answer = field_alias_answer(f.message.empty() ? "Train" : f.message, f.name);
    EXPECT_NE(answer.find(f.path.empty() ? "leave it out: " : str_cat("the name is ", f.path)),
              std::string::npos)
        << answer;
  }
}

TEST(FieldAliases, NameFieldsThatThereAre) {
  check_table(aliases::kOlder);
  check_table(aliases::kForeign);
}

TEST(FieldAliases, NameValuesThatThereAre) {
  const std::string sections[] = {"train", "parallel", "data", "model.shape"};
  for (const aliases::Value& v : aliases::kValues) {
    SCOPED_TRACE(v.value);
    const FieldDescriptor* field = nullptr;
    for (const std::string& section : sections)
      if (field == nullptr) field = field_at(str_cat(section, ".", v.field));
    ASSERT_NE(field, nullptr) << v.field;
    ASSERT_NE(field->enum_type(), nullptr) << v.field;
    EXPECT_NE(field->enum_type()->FindValueByName(std::string(v.right)), nullptr) << v.right;
    EXPECT_EQ(field->enum_type()->FindValueByName(std::string(v.value)), nullptr) << "is a value already";
    EXPECT_NE(value_alias_answer(v.field, v.value).find(v.right), std::string::npos);
  }
}

// What a user sees: file, line, the right name and how to convert.
TEST(FieldAliases, AreAnsweredInFilesAndOverrides) {
  struct Case {
    const char* text;
    std::vector<const char*> words;
  };
  const std::vector<Case> cases{
      {"train { steps: 5 }", {"e.textproto:1:9: no field 'steps' in Train; the name is train.max_steps"}},
      {"train {\n micro_batch: 4 }",
       {"e.textproto:2:2",
        "train.gradient_accumulation_steps; its value is global_batch_size / micro_batch"}},
      {"train { seq_len: 4 }", {"the name is data.max_seq_length"}},
      {"data { max_length: 4 }", {"no field 'max_length' in Data; the name is data.max_seq_length"}},
      {"data { chat_template_path: \"a/b.jinja\" }",
       {"no field 'chat_template_path' in Data; the name is data.chat_template; a file"}},
      {"train { assistant_only_loss: true }", {"the name is data.train_on; answers alone are learned"}},
      {"data { mask_history: true }", {"the name is data.train_on; true is LAST"}},
      {"data { packing: bfd }", {"'bfd' is not a value", "the value is BEST_FIT"}},
      {"generate { max_length: 4 }", {"the name is generate.max_new_tokens"}},
      {"train { micro_batch_size: 4 }", {"the rows of a micro-batch on a rank * data-parallel ranks"}},
      {"train { per_device_train_batch_size: 4 }", {"train.global_batch_size", "over all ranks"}},
      {"train { bf16: true }", {"the name is train.compute_dtype; true is BF16, false is F32"}},
      {"train { gradient_checkpointing: true }", {"train.recompute_granularity; true is FULL"}},
      {"lora { rank: 4 }", {"no field 'rank' in Lora; the name is lora.r"}},
      {"moe { dropout: 0 }", {"the name is moe.adapter_dropout"}},
      {"lora { dropout: 0 }", {"the name is lora.lora_dropout"}},
      {"model { shape { hidden: 4 } }", {"the name is model.shape.hidden_size"}},
      {"model { hidden_size: 4 }", {"it is a field of another message: model.shape.hidden_size"}},
      {"parallel { moe_expert_capacity_factor: 2 }", {"parallel.buffer_factor", "no token is dropped"}},
      {"parallel { pp: 2 }",
       {"no field 'pp' in Parallel; leave it out: pipeline parallelism is not supported"}},
      {"parallel { share_gpu: true }", {"the name is debug.share_gpu"}},
      {"train { zero_optimization { stage: 3 } }", {"no field 'zero_optimization' in Train; leave it out"}},
      {"train { recompute_granularity: CHEAP }", {"'CHEAP' is not a value", "the value is SELECTIVE"}},
      {"train { recompute_granularity: BLOCK }", {"the value is FULL"}},
      {"train { on_loss_spike: WARN_OF_SPIKE }", {"the value is WARN"}},
      {"train { lr_scheduler_type: CONSTANT }", {"the value is CONSTANT_WITH_WARMUP"}},
      {"train { lr_scheduler_type: cosine }", {"did you mean 'COSINE'?"}},
      {"train { lr_scheduler_type: \"cosine\" }", {"the value of an enum stands without quotes"}},
      {"train { compute_dtype: float16 }", {"the value is BF16; float16 is not supported"}},
      {"data { test_size: 0.1 }", {"no field 'test_size' in Data; the name is data.validation_fraction"}},
      {"train { mode: QLORA }",
       {"'QLORA' is not a value of mode; the value is LORA; with train.frozen_dtype NF4. It is one of"}},
      {"train { quantization: \"nf4\" }", {"the name is train.frozen_dtype; FP8 or NF4"}},
      {"model { load_in_4bit: true }", {"the name is train.frozen_dtype; true is NF4"}},
      {"train { deepspeed: \"ds.json\" }", {"leave it out: it is not needed"}},
      {"train { resume_from_checkpoint: true }", {"leave it out: a run resumes by itself", "run_dir"}},
      {"data { shuffle: true }", {"leave it out: rows are always shuffled", "train.seed"}},
      {"parallel { device: GPU }", {"the value is CUDA. It is one of CPU, CUDA"}},
  };
  for (const Case& c : cases) {
    const std::string said = refusal(c.text);
    for (const char* words : c.words)
      EXPECT_NE(said.find(words), std::string::npos)
          << "for " << c.text << " wanted '" << words << "' in: " << said;
  }
  EXPECT_EQ(refusal("", {"train.epochs=1"}),
            "--set train.epochs=1: no field 'epochs' in Train; the name is train.num_train_epochs");
  const std::vector<std::pair<const char*, const char*>> overrides{
      {"train.micro-batch-size=4", "the name is train.gradient_accumulation_steps"},
      {"learning_rate=1e-3",
       "no field 'learning_rate' in Experiment; it is a field of another message: train.learning_rate"},
      {"train.recompute_granularity=BLOCK",
       "'BLOCK' is not a value of recompute_granularity; the value is FULL"},
      {"data.train[0].weigth=2", "did you mean 'weight'?"},
      {"data.eval[0].weight=2", "leave it out: every evaluation row is read exactly once"},
  };
  for (const auto& [assignment, words] : overrides)
    EXPECT_NE(refusal("", {assignment}).find(words), std::string::npos)
        << assignment << ": " << refusal("", {assignment});
}

TEST(FieldAliases, ANearMissIsStillAnsweredWithTheNearestName) {
  EXPECT_EQ(field_alias_answer("Train", "learning_rte"), "");
  EXPECT_NE(refusal("train { learning_rte: 1 }").find("did you mean 'learning_rate'?"), std::string::npos);
  // Another word is no near miss.
  const std::string said = refusal("data { train { path: \"a\" wavelength: 1 } }");
  EXPECT_NE(said.find("no field 'wavelength' in Source; it has path, tag, weight, columns"),
            std::string::npos)
      << said;
  const std::string mode = refusal("train { mode: DISTILLATION }");
  EXPECT_NE(mode.find("'DISTILLATION' is not a value of mode; it is one of PESC, LORA, FULL"),
            std::string::npos)
      << mode;
  EXPECT_EQ(name_since_renaming("Train", "steps"), "train.max_steps");
  EXPECT_EQ(name_since_renaming("Train", "max_length"), "");
}

}  // namespace
}  // namespace pesc
