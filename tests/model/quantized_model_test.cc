// ranks: 1 4
// The whole model on quantised frozen weights: on every layout it is the model whose plain weights have the
// dequantised values, in its loss and in every gradient; a run gives the same bits twice.
#include <gtest/gtest.h>

#include "ops/fp8.h"
#include "tests/model/rig.h"

namespace pesc {
namespace {

// The values that a quantised weight of this rank stands for.
std::vector<float> dequantized(Stream& stream, const FrozenLinear& w) {
  std::vector<float> values(static_cast<size_t>(w.out * w.in));
  Arena memory("dequantised", stream.device(), w.out * w.in * int64_t{sizeof(float)});
  const Tensor to = memory.allocate(w.out, w.in);
  if (w.type.format == FrozenFormat::kNF4) {
    nf4_dequantize(stream, w.nf4, 0, to);
  } else {
    fp8_dequantize(stream, w.weight, w.scales, to);
  }
  copy_to_host(stream, to, values.data());
  return values;
}

// Gives the plain model the values of the quantised one; both are of the same layout.
void take_values(Rig& plain, Rig& quantized) {
  const std::vector<Parameter>& from = quantized.decoder->parameters().all();
  const std::vector<Parameter>& to = plain.decoder->parameters().all();
  ASSERT_EQ(from.size(), to.size());
  int taken = 0;
  for (size_t i = 0; i < from.size(); ++i) {
    if (from[i].held.out == 0) continue;
    ASSERT_EQ(from[i].spec.name, to[i].spec.name);
    const std::vector<float> values = dequantized(quantized.decoder->stream(), from[i].held);
    ASSERT_EQ(FrozenWriter(plain.decoder->stream(), to[i].held).write(0, to[i].held.out, values.data()), -1);
    ++taken;
  }
  EXPECT_EQ(taken, 2 * 7);
}

void is_the_model_of_the_dequantised_weights(const ModelConfig& model, const PescConfig& pesc) {
  const MpiSession session;
  const auto world = test_world(session);
  const auto own = alone(*world);
  for (const FrozenFormat format : {FrozenFormat::kFP8, FrozenFormat::kNF4}) {
    Rig held(*own, model, pesc, five_rows(model), {.frozen = format});
    Rig plain(*own, model, pesc, five_rows(model), {});
    take_values(plain, held);
    FirstChoices choices;
    const double loss = plain.train(&choices);
    const Tensors want = plain.gradients();
    for (const int tp : {1, 2, 4}) {
      for (const int ep : {1, 2, 4}) {
        if (world->size() % tp != 0 || world->size() % ep != 0) continue;
        SCOPED_TRACE(
            str_cat(frozen_format_name(format), ", ", world->size(), " ranks, tp ", tp, ", ep ", ep));
        Rig rig(*world, model, pesc, five_rows(model), {.tp = tp, .ep = ep, .frozen = format});
        EXPECT_NEAR(rig.train() / loss, 1.0, 1e-5);
        EXPECT_NEAR(rig.norm / plain.norm, 1.0, 1e-5);
        const Tensors got = rig.gradients();
        ASSERT_EQ(got.size(), want.size());
        for (const auto& [name, values] : want) EXPECT_LT(relative_error(got.at(name), values), 1e-4) << name;
        rig.train();
        EXPECT_EQ(rig.gradients(), got);
      }
    }
  }
}

TEST(QuantizedModel, IsThatOfTheDequantisedWeightsOnEveryLayout) {
  is_the_model_of_the_dequantised_weights(tiny_llama(), tiny_pesc());
}
TEST(QuantizedModel, OfOddShapesToo) {
  is_the_model_of_the_dequantised_weights(odd_llama(), odd_pesc());
}

}  // namespace
}  // namespace pesc
