// The FLOP count behind every speed figure, against sums written out here for the shapes that people know.
#include "model/flops.h"

#include <gtest/gtest.h>

namespace pesc {
namespace {

ModelConfig llama_7b() {
  ModelConfig m;
  m.vocab_size = 32000;
  m.hidden_size = 4096;
  m.intermediate_size = 11008;
  m.num_hidden_layers = 32;
  m.num_attention_heads = 32;
  m.num_key_value_heads = 32;
  m.head_dim = 128;
  return m;
}

PescConfig pesc_64() {
  PescConfig p;
  p.mode = TrainMode::kPesc;
  p.lora.r = 64;
  p.lora.target_modules = {Linear::kQ,    Linear::kK,  Linear::kV,   Linear::kO,
                           Linear::kGate, Linear::kUp, Linear::kDown};
  p.moe.num_experts = 8;
  p.moe.num_experts_per_tok = 2;
  p.moe.adapter_dim = 64;
  return p;
}

// 8 full rows of 2048 tokens, every one supervised.
constexpr StepTokens kFullRows{8.0 * 2048, 8.0 * 2048, 8.0 * 2048 * 2048};

// tests/bench/README.md: on one H200 this shape has a floor of 614 ms at 787 TFLOP/s.
TEST(Flops, FloorOf7BOnOneH200) {
  const double flops = training_flops(llama_7b(), pesc_64(), kFullRows);
  EXPECT_NEAR(flops / 4.829e14, 1, 5e-4);
  EXPECT_NEAR(flops / 787e12, 0.614, 1e-3);
}

// What FP8 may multiply: all of the frozen linears, none of the head, LoRA or attention.
TEST(Flops, ThoseOfTheFrozenLinearsOf7B) {
  PescConfig p = pesc_64();
  const double linears = 32 * 4 * (4.0 * 4096 * 4096 + 3.0 * 4096 * 11008) * 16384;
  EXPECT_DOUBLE_EQ(frozen_linear_flops(llama_7b(), p, 16384), linears);
  EXPECT_DOUBLE_EQ(frozen_linear_flops(llama_7b(), p, 1), linears / 16384);
  EXPECT_NEAR(linears / training_flops(llama_7b(), p, kFullRows), 0.88, 0.005);
  p.mode = TrainMode::kFull;
  EXPECT_EQ(frozen_linear_flops(llama_7b(), p, 16384), 0);
}

TEST(Flops, TermByTermOf7B) {
  constexpr double kTokens = 8.0 * 2048;
  constexpr double kLinears = 4.0 * 4096 * 4096 + 3.0 * 4096 * 11008;                // of a layer
  constexpr double kLora = 64.0 * (4 * (4096 + 4096) + 3 * (4096 + 11008));          // of a layer
  constexpr double kRouterAndAdapters = 8.0 * 4096 + 2.0 * (64 * 4096 + 4096 * 64);  // top-2 of 8
  constexpr double kAttention = 3.5 * 4 * 2048 * 4096 / 2;                           // of a token and layer
  constexpr double kHead = 4096.0 * 32000;
  const double lora = 32 * kTokens * (4 * kLinears + 6 * kLora + kAttention) + 4 * kTokens * kHead;
  const double full = 32 * kTokens * (6 * kLinears + kAttention) + 6 * kTokens * kHead;

  PescConfig p = pesc_64();
  EXPECT_DOUBLE_EQ(training_flops(llama_7b(), p, kFullRows), lora + 32 * kTokens * 6 * kRouterAndAdapters);
  p.mode = TrainMode::kLora;
  EXPECT_DOUBLE_EQ(training_flops(llama_7b(), p, kFullRows), lora);
  p.mode = TrainMode::kFull;
  EXPECT_DOUBLE_EQ(training_flops(llama_7b(), p, kFullRows), full);
}

// Where every number differs: fewer KV heads, head_dim that is not hidden / heads, some of LoRA's targets,
// rows of 3 and 5 tokens of which 4 are supervised.
TEST(Flops, EveryNumberInItsPlace) {
  ModelConfig m;
  m.vocab_size = 101;
  m.hidden_size = 12;
  m.intermediate_size = 20;
  m.num_hidden_layers = 2;
  m.num_attention_heads = 4;
  m.num_key_value_heads = 2;
  m.head_dim = 5;
  PescConfig p = pesc_64();
  p.lora.r = 3;
  p.lora.target_modules = {Linear::kQ, Linear::kK, Linear::kO, Linear::kDown};
  p.moe.num_experts = 7;
  p.moe.num_experts_per_tok = 3;
  p.moe.adapter_dim = 2;
  const StepTokens step{3 + 5, 4, 3 * 3 + 5 * 5};
  constexpr double kQ = 20, kKv = 10;
  const double linears = 12 * kQ + 2 * 12 * kKv + kQ * 12 + 3 * 12 * 20;
  const double lora = 3 * ((12 + kQ) + (12 + kKv) + (kQ + 12) + (20 + 12));
  const double moe = 7 * 12 + 3 * (2 * 12 + 12 * 2);
  const double attention = 3.5 * 4 * kQ / 2 * (9 + 25);
  const double head = 4.0 * 12 * 101 * 4;
  EXPECT_DOUBLE_EQ(training_flops(m, p, step),
                   2 * (8 * (4 * linears + 6 * lora + 6 * moe) + attention) + head);
  p.lora.r = 0;
  EXPECT_DOUBLE_EQ(training_flops(m, p, step), 2 * (8 * (4 * linears + 6 * moe) + attention) + head);
}

}  // namespace
}  // namespace pesc
