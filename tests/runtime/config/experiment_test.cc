// Experiments: what bad files are told, defaults, overrides, and the resolved text.
#include "runtime/config/experiment.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "ops/core/check.h"

namespace pesc {
namespace {

// A valid experiment of nine lines; tests replace or append lines.
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

std::string replaced(const std::string& from, const std::string& to) {
  std::string text = kGood;
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

// The message of the error that `what` ends in, which must be one of usage (exit code 64).
template <class What>
std::string usage_error(const What& what) {
  try {
    what();
  } catch (const UsageError& e) {
    return e.what();
  }
  ADD_FAILURE() << "nothing was refused";
  return "";
}

std::string refusal(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return usage_error([&] { (void)parse(text, overrides); });
}

struct BadFile {
  const char* from;
  const char* to;
  std::vector<const char*> fragments;
};

TEST(Experiment, RefusesBadFilesWithFileLineAndTheNearestName) {
  const std::vector<BadFile> table{
      // Names.
      {"max_steps: 10",
       "max_stepz: 10",
       {"e.textproto:5:", "no field 'max_stepz' in Train", "did you mean 'max_steps'?"}},
      {"max_steps: 10",
       "max_steps: 10 learning_rte: 1e-3",
       {"e.textproto:5:17", "did you mean 'learning_rate'?"}},
      {"moe {", "mo {", {"e.textproto:9:1", "no field 'mo' in Experiment", "did you mean 'moe'?"}},
      {"path: \"a.jsonl\"", "pth: \"a\"", {"e.textproto:8:", "no field 'pth' in Source", "'path'"}},
      {"max_steps: 10",
       "max_steps: 10\n  lr_scheduler_type: COSIN",
       {"e.textproto:6:", "'COSIN' is not a value of lr_scheduler_type", "did you mean 'COSINE'?",
        "CONSTANT_WITH_WARMUP, LINEAR, COSINE"}},
      {"max_steps: 10", "max_steps: 10 mode: DENSE", {"e.textproto:5:23:", "PESC, LORA, FULL"}},
      {"moe {", "parallel { device: GPU } moe {", {"e.textproto:9:", "CPU, CUDA"}},
      {"num_experts: 4",
       "num_experts: 4 } lora { target_modules: \"q_prj\"",
       {"e.textproto:9: lora.target_modules[0] is 'q_prj'", "did you mean 'q_proj'?", "down_proj"}},
      {"num_experts: 4",
       "num_experts: 4 } lora { target_modules: \"all-linear\"",
       {"e.textproto:9: lora.target_modules[0] is 'all-linear'; leave it out: all 7 linears of a layer are "
        "the default"}},
      {"num_experts: 4",
       "num_experts: 4 } lora { target_modules: [\"q_proj\", \"q_proj\"]",
       {"lora.target_modules[1]", "second time"}},
      // Types and syntax.
      {"max_steps: 10", "max_steps: \"ten\"", {"e.textproto:5:14", "Expected integer"}},
      {"max_steps: 10", "max_steps: 1.5", {"e.textproto:5:", "Expected integer"}},
      {"max_steps: 10", "max_steps: 10 learning_rate: fast", {"e.textproto:5:", "Expected double"}},
      {"max_steps: 10", "max_steps: 10 max_steps: 11", {"e.textproto:5:", "'max_steps' is set twice"}},
      {"max_steps: 10", "max_steps: 99999999999999999999", {"e.textproto:5:", "out of range"}},
      {"moe { num_experts: 4 }", "moe { num_experts: 4", {"e.textproto:10:1"}},
      // Fields that exclude each other, and required ones.
      {"max_steps: 10",
       "max_steps: 10\n num_train_epochs: 1",
       {"e.textproto:6:", "'num_train_epochs' and 'max_steps' exclude each other"}},
      {"max_steps: 10",
       "max_steps: 10 warmup_steps: 1 warmup_ratio: 0.1",
       {"e.textproto:5:", "exclude each other"}},
      {"path: \"base\"", "path: \"base\" shape {}", {"e.textproto:3:", "'shape' and 'path' exclude"}},
      {"max_steps: 10", "", {"e.textproto:4: train needs train.max_steps or train.num_train_epochs"}},
      {"path: \"base\"", "", {"e.textproto:3: model names no base", "model.path", "model.shape"}},
      {"run_dir: \"runs/t\"", "", {"e.textproto: run_dir is not set"}},
      {"train { path: \"a.jsonl\" }", "", {"e.textproto:8: data.train is empty"}},
      {"path: \"a.jsonl\"", "tag: \"x\"", {"e.textproto:8: data.train[0].path is not set"}},
      // Ranges.
      {"max_steps: 10", "max_steps: 0", {"e.textproto:5: train.max_steps is 0; it must be at least 1"}},
      {"max_steps: 10",
       "num_train_epochs: -1",
       {"e.textproto:5: train.num_train_epochs is -1; it must be positive"}},
      {"gradient_accumulation_steps: 2",
       "gradient_accumulation_steps: 3",
       {"e.textproto:6: train.gradient_accumulation_steps is 3",
        "does not divide train.global_batch_size = 8"}},
      {"gradient_accumulation_steps: 2",
       "gradient_accumulation_steps: 16",
       {"e.textproto:6: train.gradient_accumulation_steps is 16", "between 1 and 8"}},
      {"data {", "data { max_seq_length: 1", {"e.textproto:8: data.max_seq_length is 1"}},
      {"max_steps: 10", "max_steps: 10 learning_rate: -1", {"e.textproto:5: train.learning_rate is -1"}},
      {"max_steps: 10", "max_steps: 10 learning_rate: nan", {"e.textproto:5: train.learning_rate is nan"}},
      {"max_steps: 10", "max_steps: 10 max_grad_norm: inf", {"e.textproto:5: train.max_grad_norm is inf"}},
      {"max_steps: 10",
       "max_steps: 10 loss_spike_ratio: 0.5",
       {"e.textproto:5: train.loss_spike_ratio is 0.5", "above 1"}},
      {"max_steps: 10", "max_steps: 10 loss_spike_ratio: 1", {"e.textproto:5: train.loss_spike_ratio is 1"}},
      {"max_steps: 10", "max_steps: 10 weight_decay: -0.1", {"e.textproto:5: train.weight_decay is -0.1"}},
      {"max_steps: 10",
       "max_steps: 10 adam_beta2: 1",
       {"e.textproto:5: train.adam_beta2 is 1", "less than 1"}},
      {"max_steps: 10",
       "max_steps: 10 adam_epsilon: 0",
       {"e.textproto:5: train.adam_epsilon is 0", "positive"}},
      {"max_steps: 10", "max_steps: 10 warmup_ratio: 1", {"e.textproto:5: train.warmup_ratio is 1"}},
      {"max_steps: 10", "max_steps: 10 min_lr_ratio: 1.5", {"e.textproto:5: train.min_lr_ratio is 1.5"}},
      {"num_experts: 4",
       "num_experts: 4 num_experts_per_tok: 5",
       {"e.textproto:9: moe.num_experts_per_tok is 5", "between 1 and moe.num_experts = 4"}},
      {"num_experts: 4", "num_experts: 0", {"e.textproto:9: moe.num_experts is 0"}},
      {"num_experts: 4", "num_experts: 256", {"e.textproto:9: moe.num_experts is 256", "between 1 and 255"}},
      {"num_experts: 4", "adapter_dim: 0", {"e.textproto:9: moe.adapter_dim is 0"}},
      {"num_experts: 4", "adapter_dropout: 1", {"e.textproto:9: moe.adapter_dropout is 1"}},
      {"num_experts: 4", "router_aux_loss_coef: -1", {"e.textproto:9: moe.router_aux_loss_coef is -1"}},
      {"num_experts: 4", "adapter_scaling: nan", {"e.textproto:9: moe.adapter_scaling is nan"}},
      {"num_experts: 4",
       "num_experts: 4 } lora { lora_dropout: -0.1",
       {"e.textproto:9: lora.lora_dropout is -0.1"}},
      {"num_experts: 4", "num_experts: 4 } lora { r: -1", {"e.textproto:9: lora.r is -1"}},
      {"num_experts: 4", "num_experts: 4 } parallel { tp: 0", {"e.textproto:9: parallel.tp is 0"}},
      {"num_experts: 4", "num_experts: 4 } parallel { buffer_factor: 0", {"parallel.buffer_factor is 0"}},
      {"num_experts: 4",
       "num_experts: 4 } parallel { expert_exchange: WEIGHT",
       {"e.textproto:9:", "WEIGHT", "TOKENS", "WEIGHTS", "AUTO"}},
      {"eval { path: \"b\" }",
       "eval { path: \"b\" weight: 2 }",
       {"e.textproto:8:", "no field 'weight'", "leave it out: every evaluation row is read exactly once"}},
      {"path: \"a.jsonl\"", "path: \"a\" weight: 0", {"e.textproto:8: data.train[0].weight is 0"}},
      {"num_experts: 4",
       "num_experts: 4 } checkpoint { save_total_limit: 1",
       {"e.textproto:9: checkpoint.save_total_limit is 1"}},
      {"num_experts: 4", "num_experts: 4 } generate { top_p: 0", {"e.textproto:9: generate.top_p is 0"}},
      {"num_experts: 4",
       "num_experts: 4 } generate { temperature: -1",
       {"e.textproto:9: generate.temperature is -1"}},
      {"num_experts: 4",
       "num_experts: 4 } debug { routing_record: \"a\" routing_replay: \"b\"",
       {"e.textproto:9: debug.routing_record", "exclude each other"}},
  };
  for (const BadFile& bad : table) {
    const std::string message = refusal(replaced(bad.from, bad.to));
    for (const char* fragment : bad.fragments) {
      EXPECT_NE(message.find(fragment), std::string::npos)
          << "for '" << bad.to << "' wanted '" << fragment << "' in: " << message;
    }
  }
}

TEST(Experiment, EveryEvalFileGivesARow) {
  const std::string two = "data.eval[1].path=c";
  EXPECT_EQ(parse(kGood, {two, "train.eval_steps=5", "train.max_eval_samples=2"}).train.max_eval_samples, 2);
  EXPECT_NE(refusal(kGood, {two, "train.max_eval_samples=1"})
                .find("train.max_eval_samples is 1, fewer than the 2 files of data.eval"),
            std::string::npos);
}

TEST(Experiment, RefusesBadShapes) {
  const std::string good =
      "vocab_size: 64 hidden_size: 32 intermediate_size: 48 num_hidden_layers: 2 num_attention_heads: 4";
  const auto run = [&](const std::string& fields, const std::string& mode) {
    return parse(
        replaced("model { path: \"base\" }", "model { tokenizer: \"t\" shape {\n" + fields + "\n} }"),
        {"train.mode=" + mode});
  };
  const ExperimentConfig c = run(good + " family: QWEN2 tie_word_embeddings: true", "FULL");
  EXPECT_EQ(c.model.shape.num_key_value_heads, 4);
  EXPECT_EQ(c.model.shape.head_dim, 8);
  EXPECT_EQ(c.model.shape.max_position_embeddings, 2048);
  EXPECT_EQ(c.model.shape.rope.theta, 10000);
  EXPECT_TRUE(c.model.shape.qkv_bias);
  EXPECT_TRUE(c.model.shape.tie_word_embeddings);
  EXPECT_EQ(c.model.initializer_range, 0.02);
  EXPECT_EQ(c.model.path, "");
  const auto refused = [&](const std::string& fields, const std::string& mode) {
    return usage_error([&] { (void)run(fields, mode); });
  };
  EXPECT_NE(refused(good, "PESC").find("e.textproto:3: model.shape has random weights"), std::string::npos);
  EXPECT_NE(refused("hidden_size: 32", "FULL").find("model.shape.vocab_size is not set"), std::string::npos);
  EXPECT_NE(refused(good + " num_key_value_heads: 3", "FULL")
                .find("e.textproto:4: model.shape.num_key_value_heads is 3"),
            std::string::npos);
  EXPECT_NE(refused(good + "\nhead_dim: 7", "FULL").find("e.textproto:5: model.shape.head_dim is 7"),
            std::string::npos);
  EXPECT_NE(
      refused(
          "vocab_size: 64 hidden_size: 30 intermediate_size: 48 num_hidden_layers: 2 num_attention_heads: 4",
          "FULL")
          .find("model.shape.num_attention_heads is 4, which does"),
      std::string::npos);
  EXPECT_NE(refused(good + " rms_norm_eps: 0", "FULL").find("model.shape.rms_norm_eps is 0"),
            std::string::npos);
}

TEST(Experiment, DefaultsAreThePapersRecipe) {
  const ExperimentConfig c = parse(
      "run_dir: \"r\" model { path: \"base\" } train { num_train_epochs: 1 } data { train { path: \"a\" tag: "
      "\"x\" } "
      "}");
  EXPECT_EQ(c.model.tokenizer, "base");
  EXPECT_EQ(c.pesc.mode, TrainMode::kPesc);
  EXPECT_EQ(c.pesc.moe.num_experts, 8);
  EXPECT_EQ(c.pesc.moe.num_experts_per_tok, 2);
  EXPECT_EQ(c.pesc.moe.adapter_dim, 512);
  EXPECT_EQ(c.pesc.moe.router_aux_loss_coef, 0.01);
  EXPECT_EQ(c.pesc.lora.r, 64);
  EXPECT_EQ(c.pesc.lora.lora_alpha, 16);
  EXPECT_EQ(c.pesc.lora.target_modules.size(), static_cast<size_t>(kLinears));
  EXPECT_EQ(c.train.max_steps, 0);
  EXPECT_EQ(c.train.num_train_epochs, 1);
  EXPECT_EQ(c.train.global_batch_size, 128);
  EXPECT_EQ(c.train.micro_batch_rows(), 128);
  EXPECT_EQ(c.train.gradient_accumulation_steps, 1);
  EXPECT_EQ(parse(kGood).train.micro_batch_rows(), 4);
  EXPECT_EQ(c.data.max_seq_length, 2048);
  EXPECT_EQ(c.train.lr.lr, 2e-4);
  EXPECT_EQ(c.train.lr.schedule, Schedule::kConstant);
  EXPECT_EQ(c.train.recompute_granularity, Recompute::kNone);
  EXPECT_EQ(parse(kGood, {"train.recompute_granularity=SELECTIVE"}).train.recompute_granularity,
            Recompute::kSelective);
  EXPECT_EQ(parse(kGood, {"train.recompute_granularity=FULL"}).train.recompute_granularity, Recompute::kFull);
  EXPECT_EQ(c.train.adamw.clip_norm, 0.3);
  EXPECT_EQ(c.train.adamw.weight_decay, 0);
  EXPECT_EQ(c.parallel.tp, 1);
  EXPECT_EQ(c.parallel.ep, 1);
  EXPECT_EQ(c.parallel.buffer_factor, 2);
  EXPECT_EQ(c.parallel.dispatch_chunks, 0);
  EXPECT_EQ(c.parallel.overlap_comm, Overlap::kOff);
  EXPECT_EQ(parse(kGood, {"parallel.overlap_comm=true"}).parallel.overlap_comm, Overlap::kOn);
  ASSERT_EQ(c.data.train.size(), 1U);
  EXPECT_EQ(c.data.train[0].tag, "x");
  EXPECT_EQ(c.data.train[0].weight, 1);
  EXPECT_TRUE(c.data.eval.empty());
  EXPECT_EQ(c.data.on_bad_row, BadRowPolicy::kFail);
  EXPECT_EQ(c.data.chat_template, "auto");
  EXPECT_EQ(parse(kGood, {"data.chat_template=a/b"}).data.chat_template, "a/b");
  EXPECT_EQ(c.data.template_date, "");
  EXPECT_EQ(c.data.cache_dir, "");
  EXPECT_EQ(parse(kGood, {"data.cache_dir=tokens/here"}).data.cache_dir, "tokens/here");
  EXPECT_EQ(c.model.cache_dir, "");
  EXPECT_EQ(parse(kGood, {"model.cache_dir=weights/here"}).model.cache_dir, "weights/here");
  EXPECT_EQ(c.data.train_on, TrainOn::kAll);
  EXPECT_EQ(parse(kGood, {"data.train_on=LAST"}).data.train_on, TrainOn::kLast);
  EXPECT_EQ(c.data.on_long_row, LongRowPolicy::kCut);
  EXPECT_EQ(parse(kGood, {"data.on_long_row=DROP"}).data.on_long_row, LongRowPolicy::kDrop);
  EXPECT_EQ(c.data.packing, PackingPolicy::kNone);
  EXPECT_EQ(parse(kGood, {"data.packing=BEST_FIT"}).data.packing, PackingPolicy::kBestFit);
  EXPECT_EQ(c.checkpoint.save_total_limit, 2);
  EXPECT_TRUE(c.checkpoint.async_save);
  EXPECT_EQ(c.checkpoint.on_save_error, OnSaveError::kStop);
  EXPECT_EQ(parse(kGood, {"checkpoint.on_save_error=CONTINUE"}).checkpoint.on_save_error,
            OnSaveError::kContinue);
  EXPECT_FALSE(parse(kGood, {"checkpoint.async_save=false"}).checkpoint.async_save);
  EXPECT_EQ(c.generate.temperature, 0);
}

TEST(Experiment, TheExpertExchangeIsTokensUnlessItIsSaid) {
  EXPECT_EQ(parse(kGood).parallel.expert_exchange, ExpertExchange::kTokens);
  EXPECT_EQ(parse(kGood, {"parallel.expert_exchange=TOKENS"}).parallel.expert_exchange,
            ExpertExchange::kTokens);
  EXPECT_EQ(parse(kGood, {"parallel.expert_exchange=WEIGHTS"}).parallel.expert_exchange,
            ExpertExchange::kWeights);
  EXPECT_FALSE(parse(kGood, {"parallel.expert_exchange=AUTO"}).parallel.expert_exchange.has_value());
}

TEST(Experiment, TokensAreExchangedInTwoChunksWhereThatHidesSomething) {
  const ExperimentConfig cpu = parse(kGood);
  const ExperimentConfig gpu = parse(kGood, {"parallel.device=CUDA", "parallel.overlap_comm=true"});
  const auto chunks = [](const ExperimentConfig& c, int world, int tp, int ep, int64_t tokens) {
    return c.parallel.chunks(c.pesc, Mesh(world, 0, tp, ep), tokens);
  };
  EXPECT_EQ(chunks(gpu, 4, 1, 4, 8192), 2);
  EXPECT_EQ(chunks(gpu, 4, 2, 4, 8192), 2);
  EXPECT_EQ(chunks(gpu, 4, 4, 4, 8192), 1);
  EXPECT_EQ(chunks(gpu, 4, 1, 4, 4095), 1);
  EXPECT_EQ(chunks(gpu, 4, 1, 1, 8192), 1);
  EXPECT_EQ(chunks(cpu, 4, 1, 4, 8192), 1);
  EXPECT_EQ(chunks(parse(kGood, {"parallel.device=CUDA"}), 4, 1, 4, 8192), 1);  // nothing would hide it
  EXPECT_EQ(chunks(parse(kGood, {"parallel.device=CUDA", "train.mode=LORA"}), 4, 1, 1, 8192), 1);
  for (const int n : {1, 2}) {
    const ExperimentConfig set = parse(kGood, {str_cat("parallel.dispatch_chunks=", n)});
    EXPECT_EQ(chunks(set, 4, 1, 4, 10), n);
  }
  EXPECT_EQ(parse(kGood, {"parallel.overlap_comm=false"}).parallel.overlap_comm, Overlap::kOff);
  EXPECT_NE(refusal(kGood, {"parallel.dispatch_chunks=3"}).find("parallel.dispatch_chunks is 3"),
            std::string::npos);
}

TEST(Experiment, OneFileIsItsOwnDenseBaseline) {
  const std::string text = replaced("num_experts: 4", "num_experts: 4 } parallel { ep: 4");
  EXPECT_EQ(parse(text).parallel.ep, 4);
  const ExperimentConfig lora = parse(text, {"train.mode=LORA"});
  EXPECT_EQ(lora.pesc.moe.num_experts, 0);
  EXPECT_EQ(lora.pesc.lora.r, 64);
  EXPECT_EQ(lora.parallel.ep, 1);
  const ExperimentConfig full = parse(text, {"train.mode=FULL"});
  EXPECT_EQ(full.pesc.moe.num_experts, 0);
  EXPECT_EQ(full.pesc.lora.r, 0);
  EXPECT_NE(refusal(text, {"train.mode=LORA", "lora.r=0"}).find("--set lora.r=0: lora.r is 0"),
            std::string::npos);
}

TEST(Experiment, AnOverriddenValueIsBlamedOnTheOverride) {
  const std::string message = refusal(kGood, {"train.gradient_accumulation_steps=3"});
  EXPECT_EQ(message.find("--set train.gradient_accumulation_steps=3: train.gradient_accumulation_steps is 3"),
            0U)
      << message;
  // What the override took away is no place any more; its neighbours keep theirs.
  EXPECT_EQ(
      refusal(kGood, {"data.train=[{weight: 2}]"}).find("--set data.train=[{weight: 2}]: data.train[0].path"),
      0U);
  EXPECT_EQ(refusal(kGood, {"train.global_batch_size=7"})
                .find("e.textproto:6: train.gradient_accumulation_steps is 2"),
            0U);
}

TEST(Experiment, ResolvedTextReadsBackToItself) {
  const std::vector<std::string> texts{
      kGood,
      replaced(
          "max_steps: 10",
          "num_train_epochs: 0.3333333333333333 warmup_ratio: 0.03 learning_rate: 1.2345678901234567e-4"),
      replaced("\"runs/t\"", "\"runs/\\\"\\n\\303\\251 x\""),
      replaced("num_experts: 4", "num_experts: 4 } lora { target_modules: [\"o_proj\", \"q_proj\"]"),
      replaced("model { path: \"base\" }\ntrain {",
               "model { tokenizer: \"t\" shape { vocab_size: 64 hidden_size: 32 intermediate_size: 48 "
               "num_hidden_layers: 2 num_attention_heads: 4 } }\ntrain "
               "{ mode: FULL"),
  };
  for (const std::string& text : texts) {
    const ExperimentConfig first = parse(text);
    const ExperimentConfig again = parse(first.text);
    EXPECT_EQ(first.text, again.text);
    EXPECT_EQ(first.run_dir, again.run_dir);
    EXPECT_EQ(first.train.lr.lr, again.train.lr.lr);
    EXPECT_EQ(first.train.num_train_epochs, again.train.num_train_epochs);
    EXPECT_EQ(first.pesc.lora.target_modules, again.pesc.lora.target_modules);
    EXPECT_TRUE(experiment_differences(first.text, again.text).empty());
  }
  // Every default is there to be read, the dependent ones too.
  const std::string text = parse(replaced("gradient_accumulation_steps: 2", "")).text;
  for (const char* field :
       {"gradient_accumulation_steps: 1", "adam_beta2: 0.999", "max_grad_norm: 0.3",
        "target_modules: \"down_proj\"", "r: 64", "tokenizer: \"base\"", "buffer_factor: 2",
        "save_total_limit: 2", "max_seq_length: 2048", "temperature: 0"})
    EXPECT_NE(text.find(field), std::string::npos) << field << " in\n" << text;
}

TEST(Experiment, TagsArePrintable) {
  for (const char* tag : {"\\xff", "a\\nb", "\\033[31m"}) {
    const std::string error = refusal(replaced("path: \"b\"", str_cat("path: \"b\" tag: \"", tag, "\"")));
    EXPECT_NE(error.find("data.eval[0].tag is '"), std::string::npos) << error;
    EXPECT_NE(error.find("UTF-8"), std::string::npos) << error;
  }
  (void)parse(kGood, {"data.eval[0].tag=caf\xC3\xA9 1"});
}

TEST(Experiment, DifferencesNameEachFieldAndBothValues) {
  const std::string before = parse(kGood).text;
  const std::string after =
      parse(kGood, {"train.seed=2", "data.train[1].path=c", "train.num_train_epochs=1"}).text;
  const std::vector<std::string> expected{
      "data.train[1].path: (not set) -> \"c\"", "data.train[1].weight: (not set) -> 1",
      "train.max_steps: 10 -> (not set)", "train.num_train_epochs: (not set) -> 1", "train.seed: 1 -> 2"};
  EXPECT_EQ(experiment_differences(before, after), expected);
  EXPECT_TRUE(experiment_differences(before, before).empty());
}

class ExperimentPaths : public ::testing::Test {
 protected:
  ExperimentPaths() {
    std::string name = ::testing::TempDir() + "/pesc_config_XXXXXX";
    folder_ = mkdtemp(name.data());
    std::filesystem::create_directory(folder_ + "/base");
    std::ofstream(folder_ + "/a.jsonl") << "{}\n";
    std::ofstream(folder_ + "/e.textproto") << kGood;
  }
  ~ExperimentPaths() override { std::filesystem::remove_all(folder_); }
  [[nodiscard]] std::vector<std::string> good() const {
    return {"model.path=" + folder_ + "/base", "data.train[0].path=" + folder_ + "/a.jsonl",
            "data.eval[0].path=" + folder_ + "/a.jsonl"};
  }
  [[nodiscard]] std::string refused(const std::string& change) const {
    std::vector<std::string> overrides = good();
    overrides.push_back(change);
    const ExperimentConfig c = load_experiment(folder_ + "/e.textproto", overrides);
    return usage_error([&] { check_paths(c, DataUse::kAll); });
  }
  std::string folder_;
};

TEST_F(ExperimentPaths, UnreadableOnesAreRefusedByField) {
  check_paths(load_experiment(folder_ + "/e.textproto", good()), DataUse::kAll);
  EXPECT_NE(refused("model.path=nowhere").find("model.path: 'nowhere' cannot be read: No such file"),
            std::string::npos);
  EXPECT_NE(refused("model.path=" + folder_ + "/a.jsonl").find("is not a folder"), std::string::npos);
  EXPECT_NE(refused("model.tokenizer=nowhere").find("model.tokenizer: 'nowhere'"), std::string::npos);
  EXPECT_NE(refused("data.train[0].path=" + folder_).find("is a folder; name a file"), std::string::npos);
  EXPECT_NE(refused("data.eval[1].path=nowhere").find("data.eval[1].path: 'nowhere'"), std::string::npos);
  EXPECT_NE(refused("debug.routing_replay=nowhere").find("debug.routing_replay"), std::string::npos);
  std::filesystem::create_symlink("gone", folder_ + "/link");
  EXPECT_NE(refused("model.path=" + folder_ + "/link").find("is a dangling symbolic link, to gone"),
            std::string::npos);
  EXPECT_NE(refused("data.train[0].path=" + folder_ + "/link").find("is a dangling symbolic link"),
            std::string::npos);
  std::filesystem::create_symlink("loop", folder_ + "/loop");
  EXPECT_NE(refused("model.path=" + folder_ + "/loop").find("a symbolic link, to loop, that leads back to"),
            std::string::npos);
  // In the file itself: its line.
  const std::string message =
      usage_error([&] { check_paths(load_experiment(folder_ + "/e.textproto", {}), DataUse::kAll); });
  EXPECT_EQ(message.find(folder_ + "/e.textproto:3: model.path: 'base'"), 0U) << message;
}

TEST_F(ExperimentPaths, LinksOfTheModelFolderAreFollowedOnRequest) {
  EXPECT_EQ(load_experiment(folder_ + "/e.textproto", good()).model.links, Links::kInside);
  std::vector<std::string> overrides = good();
  overrides.emplace_back("model.follow_links=true");
  EXPECT_EQ(load_experiment(folder_ + "/e.textproto", overrides).model.links, Links::kFollow);
}

TEST_F(ExperimentPaths, OnlyWhatTheVerbReads) {
  const auto with = [&](const std::string& change) {
    std::vector<std::string> overrides = good();
    overrides.push_back(change);
    return load_experiment(folder_ + "/e.textproto", overrides);
  };
  const ExperimentConfig no_train = with("data.train[0].path=nowhere");
  const ExperimentConfig no_eval = with("data.eval[0].path=nowhere");
  EXPECT_NO_THROW(check_paths(no_train, DataUse::kEval));
  EXPECT_NO_THROW(check_paths(no_train, DataUse::kNone));
  EXPECT_NO_THROW(check_paths(no_eval, DataUse::kNone));
  EXPECT_THROW(check_paths(no_train, DataUse::kAll), UsageError);
  EXPECT_THROW(check_paths(no_eval, DataUse::kEval), UsageError);
  EXPECT_THROW(check_paths(with("model.tokenizer=nowhere"), DataUse::kNone), UsageError);
}

TEST_F(ExperimentPaths, ExperimentFilesThatAreNotThere) {
  EXPECT_NE(usage_error([&] {
              (void)load_experiment(folder_ + "/none", {});
            }).find("/none: the experiment file cannot be"),
            std::string::npos);
  EXPECT_NE(usage_error([&] { (void)load_experiment(folder_, {}); }).find("is a folder"), std::string::npos);
  ASSERT_EQ(::mkfifo((folder_ + "/fifo").c_str(), 0600), 0);  // must not wait for a writer
  EXPECT_NE(usage_error([&] { (void)load_experiment(folder_ + "/fifo", {}); }).find("is no regular file"),
            std::string::npos);
  std::ofstream(folder_ + "/empty") << "";
  EXPECT_NE(usage_error([&] { (void)load_experiment(folder_ + "/empty", {}); }).find("empty (0 bytes)"),
            std::string::npos);
  // The overrides may say all of it.
  EXPECT_NE(usage_error([&] { (void)load_experiment(folder_ + "/empty", {"name=x"}); }).find("train needs"),
            std::string::npos);
}

TEST(Experiment, IsCheckedAgainstTheModel) {
  ModelConfig m;
  m.vocab_size = 64;
  m.hidden_size = 32;
  m.intermediate_size = 48;
  m.num_hidden_layers = 2;
  m.num_attention_heads = 4;
  m.num_key_value_heads = 2;
  m.head_dim = 8;
  m.max_position_embeddings = 2048;
  const auto refused = [&](const std::vector<std::string>& overrides, int world) {
    const ExperimentConfig c = parse(kGood, overrides);
    return usage_error([&] { check_against_model(c, m, world); });
  };
  check_against_model(parse(kGood, {"parallel.tp=2", "parallel.ep=4"}), m, 4);
  EXPECT_EQ(refused({"parallel.tp=3"}, 3).find("--set parallel.tp=3: impossible layout: the model's 4"), 0U);
  EXPECT_EQ(refused({"parallel.tp=2"}, 3).find("--set parallel.tp=2: impossible layout"), 0U);
  EXPECT_NE(refused({"parallel.ep=8"}, 8).find("moe.num_experts = 4"), std::string::npos);
  EXPECT_EQ(refused({"data.max_seq_length=4096"}, 1)
                .find("--set data.max_seq_length=4096: data.max_seq_length is 4096"),
            0U);
  m.sliding_window = 1024;
  EXPECT_NE(refused({}, 1).find("sliding_window of 1024"), std::string::npos);
  check_against_model(parse(kGood, {"data.max_seq_length=1024"}), m, 1);
  m.head_dim = 7;
  EXPECT_THROW(check_against_model(parse(kGood), m, 1), DataError);
}

TEST(Experiment, ABenchmarkNeedsNeitherDataNorAPlaceButAllElse) {
  const auto bench = [](const std::string& text) {
    return parse_experiment(text, "e.textproto", {}, ExperimentUse::kBench);
  };
  const std::string shape =
      "vocab_size: 64 hidden_size: 32 intermediate_size: 48 num_hidden_layers: 2 num_attention_heads: 4";
  const std::string text = "model { tokenizer: \"t\" shape { " + shape + " } } train { max_steps: 1 }\n";
  const ExperimentConfig c = bench(text);
  EXPECT_EQ(c.pesc.mode, TrainMode::kPesc);
  EXPECT_EQ(c.model.shape.hidden_size, 32);
  EXPECT_NE(refusal(text).find("e.textproto:1: model.shape has random weights"), std::string::npos);
  EXPECT_NE(usage_error([&] {
              (void)bench(text + "moe { num_experts_per_tok: 9 }");
            }).find("e.textproto:2: moe.num_experts_per_tok is 9"),
            std::string::npos);
}

TEST(Experiment, TheOnesInTheRepositoryAreValid) {
  int found = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(PESC_SOURCE_DIR "/configs")) {
    if (entry.path().extension() != ".textproto" || entry.path().parent_path().filename() == "models")
      continue;
    const bool bench = entry.path().filename().string().starts_with("bench-");
    const ExperimentUse use = bench ? ExperimentUse::kBench : ExperimentUse::kRun;
    EXPECT_NO_THROW((void)load_experiment(entry.path().string(), {}, use)) << entry.path();
    ++found;
  }
  EXPECT_GE(found, 2);
}

// The compute type follows the device; what the device does not compute in is refused.
TEST(Experiment, TheComputeTypeFollowsTheDevice) {
  EXPECT_EQ(parse(kGood).train.compute_dtype, DType::kF32);
  EXPECT_EQ(parse(kGood, {"parallel.device=CUDA"}).train.compute_dtype, DType::kBF16);
  EXPECT_EQ(parse(kGood, {"parallel.device=CUDA", "train.compute_dtype=F32"}).train.compute_dtype,
            DType::kF32);
  const std::string error = usage_error([&] { (void)parse(kGood, {"train.compute_dtype=BF16"}); });
  EXPECT_NE(error.find("--set train.compute_dtype=BF16: train.compute_dtype is BF16"), std::string::npos)
      << error;
  EXPECT_NE(error.find("parallel.device: CUDA"), std::string::npos) << error;
}

TEST(Experiment, TypesOfFrozenWeights) {
  const auto train = [](const std::vector<std::string>& overrides) { return parse(kGood, overrides).train; };
  const std::string cuda = "parallel.device=CUDA";
  EXPECT_FALSE(train({}).frozen_dtype.has_value());
  EXPECT_FALSE(train({"train.frozen_dtype=F32"}).frozen_dtype.has_value());
  EXPECT_FALSE(train({cuda, "train.frozen_dtype=BF16"}).frozen_dtype.has_value());
  // The CPU computes in float32 from the same bytes; a GPU in FP8 where it can.
  EXPECT_EQ(train({"train.frozen_dtype=FP8"}).frozen_dtype, FrozenFormat::kFP8);
  EXPECT_EQ(train({"train.frozen_dtype=FP8"}).frozen_gemm, FrozenGemm::kDequantized);
  EXPECT_EQ(train({"train.frozen_dtype=NF4"}).frozen_dtype, FrozenFormat::kNF4);
  EXPECT_EQ(train({cuda, "train.frozen_dtype=FP8"}).frozen_gemm, std::nullopt);
  EXPECT_EQ(train({cuda, "train.frozen_dtype=FP8", "train.compute_dtype=BF16"}).frozen_gemm,
            FrozenGemm::kDequantized);
  EXPECT_EQ(train({cuda, "train.frozen_dtype=NF4"}).frozen_gemm, FrozenGemm::kDequantized);
  const auto fp8 = train({cuda, "train.compute_dtype=FP8"});
  EXPECT_EQ(fp8.frozen_dtype, FrozenFormat::kFP8);
  EXPECT_EQ(fp8.frozen_gemm, FrozenGemm::kFP8);
  EXPECT_EQ(fp8.compute_dtype, DType::kBF16);
  EXPECT_EQ(train({cuda, "train.compute_dtype=FP8", "train.frozen_dtype=NF4"}).frozen_dtype,
            FrozenFormat::kNF4);
  for (const auto& [overrides, text] : std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{"train.compute_dtype=FP8"}, "train.compute_dtype is FP8, which parallel.device CPU"},
           {{"train.frozen_dtype=BF16"}, "train.frozen_dtype is BF16, but train.compute_dtype is F32"},
           {{cuda, "train.frozen_dtype=F32"}, "train.frozen_dtype is F32, but train.compute_dtype is BF16"},
           {{cuda, "train.frozen_dtype=BF16", "train.compute_dtype=FP8"}, "train.frozen_dtype is BF16"},
           {{"train.frozen_dtype=NF4", "train.mode=FULL"}, "train.frozen_dtype is NF4, but train.mode FULL"},
           {{cuda, "train.compute_dtype=FP8", "train.mode=FULL"},
            "train.compute_dtype is FP8, but train.mode FULL"}}) {
    const std::string error = usage_error([&, o = &overrides] { (void)parse(kGood, *o); });
    EXPECT_NE(error.find(text), std::string::npos) << error;
  }
}

}  // namespace
}  // namespace pesc
