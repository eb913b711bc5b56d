// ranks: 1 2 3 4 8
// Loss, gradient norm and every gradient are the same on every layout, dropout included, as on one rank: for
// PESC, and for the tuning of all parameters with tied embeddings and biases.
#include <gtest/gtest.h>

#include "tests/model/rig.h"

namespace pesc {
namespace {

std::vector<Layout> layouts(int ranks, bool experts) {
  std::vector<Layout> all;
  for (const int tp : {1, 2, 4}) {
    for (const int ep : {1, 2, 4, 8}) {
      if (ranks % tp == 0 && ranks % ep == 0 && (experts || ep == 1)) all.push_back({tp, ep});
    }
  }
  if (experts && ranks % 2 == 0) all.push_back({2, ranks, 0.1});
  // Once more where all ranks exchange, with the tokens in two chunks; and with gradients reduced while the
  // backward runs.
  for (size_t i = 0, n = all.size(); i < n; ++i) {
    if (experts ? all[i].ep < ranks || ranks == 1 : i + 1 < n) continue;
    all.push_back(all[i]);
    all.back().chunks = experts ? 2 : 1;
    all.back().reduce = Reduce::kOverlapped;
  }
  // And with the adapters' weights gathered instead, by all ranks and, of four or more, by pairs.
  for (const int tp : {1, 2}) {
    for (const int ep : {2, ranks}) {
      if (!experts || ranks % 2 != 0 || ranks % tp != 0 || (ep < ranks && tp > 1)) continue;
      all.push_back(
          {.tp = tp, .ep = ep, .reduce = Reduce::kOverlapped, .exchange = ExpertExchange::kWeights});
    }
  }
  return all;
}

void same_everywhere(const ModelConfig& model, const PescConfig& pesc, const Rows& rows) {
  const MpiSession session;
  const auto world = test_world(session);
  const auto own = alone(*world);
  Rig reference(*own, model, pesc, rows, {});
  const double loss = reference.train();
  const Tensors want = reference.gradients();
  EXPECT_GT(reference.norm, 0);
  for (const Layout& layout : layouts(world->size(), pesc.mode == TrainMode::kPesc)) {
    SCOPED_TRACE(str_cat(world->size(), " ranks, tp ", layout.tp, ", ep ", layout.ep, ", buffer_factor ",
                         layout.buffer_factor, ", chunks ", layout.chunks, ", ",
                         expert_exchange_name(layout.exchange)));
    Rig rig(*world, model, pesc, rows, layout);
    EXPECT_NEAR(rig.train() / loss, 1.0, 1e-5);
    EXPECT_NEAR(rig.norm / reference.norm, 1.0, 1e-5);
    if (layout.buffer_factor < 1 && count_tokens(rows) > 8) {
      EXPECT_GT(rig.decoder->dispatch_rounds(), 1);
    }
    const Tensors got = rig.gradients();
    ASSERT_EQ(got.size(), want.size());
    for (const auto& [name, values] : want) EXPECT_LT(relative_error(got.at(name), values), 1e-4) << name;
  }
}

// The loss and gradient norm of twenty AdamW steps, dropout on.
std::vector<double> twenty_steps(Communicator& world, const Layout& layout) {
  Rig rig(world, tiny_llama(), tiny_pesc(), five_rows(tiny_llama()), layout);
  std::vector<double> curve;
  for (uint32_t step = 0; step < 20; ++step) {
    rig.step = step;
    curve.push_back(rig.train());
    curve.push_back(rig.norm);
    optimizer_step(*rig.decoder, {.weight_decay = 0.01, .clip_norm = 0.3}, 1e-3, step + 1, rig.norm);
  }
  return curve;
}

TEST(Layouts, TheSameCurveOverTwentySteps) {
  const MpiSession session;
  const auto world = test_world(session);
  const auto own = alone(*world);
  const std::vector<double> want = twenty_steps(*own, {});
  EXPECT_LT(want[38], 0.95 * want[0]);  // it learns
  for (const Layout& layout : layouts(world->size(), true)) {
    const std::vector<double> got = twenty_steps(*world, layout);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) {
      const bool is_norm = i % 2 == 1;  // AdamW's division brings rounding of small gradients to the fore
      EXPECT_NEAR(got[i] / want[i], 1.0, is_norm ? 1e-3 : 1e-4)
          << "value " << i << ", tp " << layout.tp << ", ep " << layout.ep << ", chunks " << layout.chunks
          << ", " << expert_exchange_name(layout.exchange);
    }
  }
}

TEST(Layouts, PescWithDropoutIsTheSameOnEveryLayout) {
  same_everywhere(tiny_llama(), tiny_pesc(), five_rows(tiny_llama()));
}
TEST(Layouts, PescOfOddShapesIsTheSameOnEveryLayout) {
  same_everywhere(odd_llama(), odd_pesc(), five_rows(odd_llama()));
}
TEST(Layouts, PescWithoutLoraIsTheSameOnEveryLayout) {
  PescConfig p = tiny_pesc();
  p.lora = {};
  same_everywhere(tiny_qwen2(), p, five_rows(tiny_qwen2()));
}
TEST(Layouts, LoraAloneIsTheSameOnEveryLayout) {
  PescConfig p = tiny_pesc();
  p.mode = TrainMode::kLora;
  same_everywhere(tiny_llama(), p, five_rows(tiny_llama()));
}
TEST(Layouts, FewerRowsThanRanksAreTheSameOnEveryLayout) {
  same_everywhere(tiny_llama(), tiny_pesc(), some_rows(tiny_llama().vocab_size, {5}));
}
TEST(Layouts, FullTuningIsTheSameOnEveryLayout) {
  same_everywhere(tiny_qwen2(), full_tuning(), five_rows(tiny_qwen2()));
}
TEST(Layouts, FullTuningOfOddShapesIsTheSameOnEveryLayout) {
  same_everywhere(odd_llama(), full_tuning(), five_rows(odd_llama()));
}
// With tp 4 each of the two KV heads stands on two ranks, and so does a part of the gradient of k's norm.
TEST(Layouts, AllParametersWithNormsOfQAndK) {
  same_everywhere(tiny_qwen3(), full_tuning(), five_rows(tiny_qwen3()));
}
TEST(Layouts, PescWithNormsOfQAndK) {
  same_everywhere(tiny_qwen3(), tiny_pesc(), five_rows(tiny_qwen3()));
}
TEST(Layouts, PescWithALayerWithoutRope) {
  same_everywhere(tiny_smollm3(), tiny_pesc(), five_rows(tiny_smollm3()));
}

}  // namespace
}  // namespace pesc
