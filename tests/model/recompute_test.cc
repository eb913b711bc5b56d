// ranks: 1 2 4
// What a backward derives again is what the forward had, bit for bit: every policy gives the same gradients
// and weights, in less memory. In float32; recompute_gpu_test.cc is the same in BF16.
#include <gtest/gtest.h>

#include "tests/model/policies.h"

namespace pesc {
namespace {

void on_every_layout(ModelConfig model, const PescConfig& pesc, const Rows& rows) {
  const MpiSession session;
  model.num_hidden_layers = 4;  // a first, a last, and between them neighbours of both
  for (const Layout& layout : policy_layouts(session.world()->size(), pesc.mode == TrainMode::kPesc))
    same_under_every_policy(model, pesc, rows, layout);
}

TEST(Recompute, PescWithDropoutIsBitwiseTheSame) {
  on_every_layout(tiny_llama(), tiny_pesc(), five_rows(tiny_llama()));
}
TEST(Recompute, PescOfOddShapesIsBitwiseTheSame) {
  on_every_layout(odd_llama(), odd_pesc(), five_rows(odd_llama()));
}
TEST(Recompute, PescWithoutLoraIsBitwiseTheSame) {
  PescConfig p = tiny_pesc();
  p.lora = {};
  on_every_layout(tiny_qwen2(), p, five_rows(tiny_qwen2()));
}
TEST(Recompute, PescWithoutDropoutIsBitwiseTheSame) {
  PescConfig p = tiny_pesc();
  p.lora.lora_dropout = p.moe.adapter_dropout = 0;
  on_every_layout(tiny_llama(), p, five_rows(tiny_llama()));
}
TEST(Recompute, FewerRowsThanRanksAreBitwiseTheSame) {
  on_every_layout(tiny_llama(), tiny_pesc(), some_rows(tiny_llama().vocab_size, {12}));
}
TEST(Recompute, AnFfnInBlocksIsBitwiseTheSame) {
  const MpiSession session;
  const int ranks = session.world()->size();
  same_under_every_policy(wide_llama(), tiny_pesc(), many_rows(42), {.tp = std::min(ranks, 2), .ep = ranks});
}
TEST(Recompute, LoraAloneIsBitwiseTheSame) {
  PescConfig p = tiny_pesc();
  p.mode = TrainMode::kLora;
  on_every_layout(tiny_llama(), p, five_rows(tiny_llama()));
}
// q and k are normed and rotated again in every backward, whatever the policy.
TEST(Recompute, PescWithNormsOfQAndK) {
  on_every_layout(tiny_qwen3(), tiny_pesc(), five_rows(tiny_qwen3()));
}
TEST(Recompute, AllParametersWithNormsOfQAndK) {
  on_every_layout(tiny_qwen3(), full_tuning(), five_rows(tiny_qwen3()));
}
TEST(Recompute, PescWithALayerWithoutRope) {
  on_every_layout(tiny_smollm3(), tiny_pesc(), five_rows(tiny_smollm3()));
}
TEST(Recompute, FullTuningIsBitwiseTheSame) {
  on_every_layout(tiny_qwen2(), full_tuning(), five_rows(tiny_qwen2()));
}

// A weight that is dequantised again is the same.
TEST(Recompute, QuantisedWeightsAreBitwiseTheSame) {
  const MpiSession session;
  const int ranks = session.world()->size();
  ModelConfig model = tiny_llama();
  model.num_hidden_layers = 4;
  for (const auto& [format, tp] :
       {std::pair{FrozenFormat::kFP8, 1}, {FrozenFormat::kNF4, std::min(ranks, 2)}})
    same_under_every_policy(model, tiny_pesc(), five_rows(model), {.tp = tp, .ep = ranks, .frozen = format});
}

}  // namespace
}  // namespace pesc
