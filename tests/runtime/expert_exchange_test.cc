// Which expert exchange a run has, and what its plan says of both.
#include "runtime/expert_exchange.h"

#include <gtest/gtest.h>

#include "runtime/config/shapes.h"
#include "runtime/decoder_options.h"
#include "runtime/machine.h"
#include "runtime/plan.h"

namespace pesc {
namespace {

using Words = std::vector<std::string>;

// Llama-2-7B with 32 rows of 2048 tokens.
ExperimentConfig experiment(const Words& overrides) {
  return parse_experiment(
      "name: \"exchange\" train { max_steps: 1 global_batch_size: 32 } data { max_seq_length: 2048 } "
      "parallel { device: CUDA } model { shape { vocab_size: 32000 hidden_size: 4096 intermediate_size: "
      "11008 num_hidden_layers: 32 num_attention_heads: 32 max_position_embeddings: 4096 } }",
      "expert_exchange_test", overrides, ExperimentUse::kBench);
}

// 8 ranks of 8192 tokens, 8 experts of which a token has 2: the exchanges' costs cross at 0.75 E d tokens in float32,
// and at 1 E d in BF16, whose gradients are float32.
Words exchanging(const std::string& exchange, int64_t adapter_dim, const std::string& type = "BF16") {
  return {"parallel.ep=8", "parallel.expert_exchange=" + exchange, str_cat("moe.adapter_dim=", adapter_dim),
          "train.compute_dtype=" + type};
}

TEST(ExpertExchangePlan, AutoTakesWhatSendsLess) {
  const auto chosen = [](const Words& words, int world = 8) {
    return expert_exchange(experiment(words), world);
  };
  using enum ExpertExchange;
  for (const auto& [type, dim] : {std::pair<const char*, int64_t>{"BF16", 1024}, {"F32", 1365}}) {
    EXPECT_EQ(chosen(exchanging("AUTO", dim - 1, type)), kWeights) << type;
    EXPECT_EQ(chosen(exchanging("AUTO", dim + 1, type)), kTokens) << type;
    EXPECT_EQ(chosen(exchanging("WEIGHTS", dim + 1, type)), kWeights);
    EXPECT_EQ(chosen(exchanging("TOKENS", dim - 1, type)), kTokens);
    EXPECT_EQ(chosen(exchanging("AUTO", dim - 1, type), 16), kTokens);  // half of the tokens for each
  }
  // Tokens that travel once more for a recompute are half as many again.
  Words recomputing = exchanging("AUTO", 1500);
  EXPECT_EQ(chosen(recomputing), kTokens);
  recomputing.emplace_back("train.recompute_granularity=FULL");
  EXPECT_EQ(chosen(recomputing), kWeights);
  EXPECT_EQ(expert_exchange_text(experiment(exchanging("AUTO", 512)), 8), "WEIGHTS (chosen by AUTO)");
  EXPECT_EQ(expert_exchange_text(experiment(exchanging("TOKENS", 512)), 8), "TOKENS");
  EXPECT_EQ(expert_exchange_text(experiment({"parallel.expert_exchange=WEIGHTS"}), 8), "");
}

// 64 wide adapters are much less than the tokens.
TEST(ExpertExchangePlan, AutoTakesTokensWhereChunksAreAskedFor) {
  const auto with = [](const std::string& exchange, const Words& more) {
    Words words = exchanging(exchange, 64);
    words.insert(words.end(), more.begin(), more.end());
    return experiment(words);
  };
  using enum ExpertExchange;
  EXPECT_EQ(expert_exchange(with("AUTO", {"parallel.dispatch_chunks=2"}), 8), kTokens);
  EXPECT_EQ(expert_exchange_text(with("AUTO", {"parallel.dispatch_chunks=2"}), 8),
            "TOKENS (chosen by AUTO for parallel.dispatch_chunks 2)");
  const ExperimentConfig chunks = with("AUTO", {"parallel.dispatch_chunks=2"});
  EXPECT_EQ(decoder_options(chunks, Mesh(8, 0, 1, 8), device_of(chunks, 0), training_use(chunks))
                .capacity.dispatch_chunks,
            2);
  for (const char* usual :
       {"parallel.dispatch_chunks=0", "parallel.dispatch_chunks=1", "parallel.buffer_factor=2"})
    EXPECT_EQ(expert_exchange_text(with("AUTO", {usual}), 8), "WEIGHTS (chosen by AUTO)") << usual;
  EXPECT_EQ(expert_exchange_text(with("AUTO", {"parallel.buffer_factor=3"}), 8),
            "WEIGHTS (chosen by AUTO; parallel.buffer_factor 3 has no effect, for no tokens travel)");
}

TEST(ExpertExchangePlan, ChunksOfTokensAreRefusedWithWeights) {
  const auto refusal = [](const std::string& exchange, const Words& more, int64_t ep = 8) -> std::string {
    Words words = exchanging(exchange, 64);
    words.insert(words.end(), more.begin(), more.end());
    const ExperimentConfig config = experiment(words);
    check_against_model(config, load_shape("7B"), 8);  // of inference too, which has no chunks
    try {
      check_dispatch_chunks(config, ep);
    } catch (const UsageError& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(
      refusal("WEIGHTS", {"parallel.dispatch_chunks=2"}),
      "--set parallel.dispatch_chunks=2: parallel.dispatch_chunks is 2, but parallel.expert_exchange is "
      "WEIGHTS, where no tokens travel that could be cut; leave one of them out");
  EXPECT_EQ(refusal("WEIGHTS", {"parallel.dispatch_chunks=1"}), "");
  EXPECT_EQ(refusal("TOKENS", {"parallel.dispatch_chunks=2"}), "");
  EXPECT_EQ(refusal("AUTO", {"parallel.dispatch_chunks=2"}), "");
  // Where nothing is exchanged it is a setting without effect.
  EXPECT_EQ(refusal("WEIGHTS", {"parallel.dispatch_chunks=2", "parallel.ep=1"}, 1), "");
  EXPECT_NE(refusal("WEIGHTS", {"parallel.dispatch_chunks=2", "parallel.ep=1"}, 16), "");  // a plan's layouts
  EXPECT_EQ(refusal("WEIGHTS", {"parallel.dispatch_chunks=2", "train.mode=LORA"}), "");
}

TEST(ExpertExchangePlan, SaysWhatBothTake) {
  const auto plan = [](Words words, const Words& more = {}) {
    words.insert(words.end(), more.begin(), more.end());
    return make_plan(experiment(words), load_shape("7B"), 8, gpu_rates(kAssumedGpu, DType::kBF16));
  };
  const auto phase = [](const Plan& p, const std::string& name) {
    for (const PlanPhase& one : p.phases)
      if (one.name == name) return one;
    return PlanPhase{};
  };
  const Plan tokens = plan(exchanging("TOKENS", 512));
  const Plan weights = plan(exchanging("WEIGHTS", 512));
  for (const Plan* p : {&tokens, &weights}) {
    EXPECT_EQ(p->tokens_exchange.sent, tokens.tokens_exchange.sent);
    EXPECT_EQ(p->weights_exchange.sent, weights.weights_exchange.sent);
  }
  EXPECT_EQ(tokens.exchange, ExpertExchange::kTokens);
  EXPECT_EQ(weights.exchange, ExpertExchange::kWeights);
  EXPECT_EQ(phase(tokens, "token exchange").sent, tokens.tokens_exchange.sent);
  EXPECT_EQ(phase(tokens, "weight exchange").sent, 0);
  EXPECT_EQ(phase(weights, "token exchange").sent, 0);
  EXPECT_EQ(phase(weights, "weight exchange").sent, weights.weights_exchange.sent);
  EXPECT_LT(weights.seconds, tokens.seconds);
  // 32 layers, of which the backward finds the last one gathered: bf16 weights 63 times, float32 gradients 32 times.
  const double matrix = 2.0 * 8 * 512 * 4096 * 7 / 8;
  EXPECT_DOUBLE_EQ(weights.weights_exchange.sent, matrix * (63 * 2 + 32 * 4));
  EXPECT_NEAR(tokens.tokens_exchange.sent, 32.0 * 8192 * 4096 * 4 * 1.75 * 2,
              1e-3 * tokens.tokens_exchange.sent);
  // A layer ahead, the weights hide behind the other layers.
  const Plan ahead = plan(exchanging("WEIGHTS", 512), {"parallel.overlap_comm=true"});
  EXPECT_LT(ahead.weights_exchange.seconds, weights.weights_exchange.seconds / 20);
  EXPECT_GT(ahead.weights_exchange.seconds, 0);
  // Once for each micro-batch, however few its tokens.
  const Plan four = plan(exchanging("WEIGHTS", 512), {"train.gradient_accumulation_steps=4"});
  EXPECT_DOUBLE_EQ(four.weights_exchange.sent, 4 * weights.weights_exchange.sent);
  EXPECT_DOUBLE_EQ(four.tokens_exchange.sent, tokens.tokens_exchange.sent);
}

// AUTO sends tokens in generation, whatever the training does; what is said holds for both.
TEST(ExpertExchangePlan, GenerationSendsTokensUnlessWeightsAreSaid) {
  for (const auto& [exchange, want] :
       {std::pair{"AUTO", ExpertExchange::kTokens}, {"WEIGHTS", ExpertExchange::kWeights}}) {
    const ExperimentConfig e = experiment(exchanging(exchange, 64));
    const Mesh eight(8, 0, 1, 8);
    const auto of = [&](const DecoderUse& use) {
      return decoder_options(e, eight, device_of(e, 0), use).capacity.expert_exchange;
    };
    EXPECT_EQ(of(training_use(e)), ExpertExchange::kWeights);
    EXPECT_EQ(of({Purpose::kInference, 8, 100, 0}), ExpertExchange::kWeights);
    EXPECT_EQ(of({Purpose::kInference, 8, 100, 4}), want);
  }
}

}  // namespace
}  // namespace pesc
