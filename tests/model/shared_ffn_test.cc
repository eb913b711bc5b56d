// ranks: 1 2 4
// The FFN block by block gives what it gives over all tokens at once: loss, gradient norm and every gradient,
// with dropout, with and without experts, and with LoRA on all, some and none of its linears. The reference
// has so many threads that its caches hold all tokens in one block; its choice of experts is replayed, as
// rounding may exchange two that are all but equal.
#include "model/shared_ffn.h"

#include <gtest/gtest.h>

#include <cstdio>

#include "tests/model/rig.h"

namespace pesc {
namespace {

constexpr int kManyThreads = 16;

// Where the ranks that share the rows have as many tokens each.
int64_t blocks(int ranks, const Layout& layout) {
  const ModelConfig m = wide_llama();
  const int64_t tokens = count_tokens(many_rows()) / (ranks / layout.tp);
  return ffn_blocks(Stream(Device{.threads = layout.threads}), m.intermediate_size / layout.tp, m.hidden_size,
                    tokens / layout.chunks);
}

void same_in_blocks(PescConfig pesc) {
  // With a large branch on q and k the softmax saturates, and the gradients depend on the last bit of what
  // goes in a thousand times as much (measured).
  pesc.lora.lora_alpha = 1;
  const MpiSession session;
  const auto world = test_world(session);
  for (const int tp : {1, 2, 4}) {
    for (const int chunks : {1, 2}) {
      Layout layout{.tp = tp, .chunks = chunks};
      if (world->size() % tp != 0) continue;
      if (pesc.mode == TrainMode::kPesc) layout.ep = world->size();
      if (chunks == 2 && layout.ep == 1) continue;
      SCOPED_TRACE(str_cat(world->size(), " ranks, tp ", tp, ", ", chunks, " chunks"));
      Layout at_once = layout;
      at_once.threads = kManyThreads;
      ASSERT_EQ(blocks(world->size(), at_once), 1);
      Rig reference(*world, wide_llama(), pesc, many_rows(), at_once);
      FirstChoices choices;
      const double loss = reference.train(&choices);
      const Tensors want = reference.gradients();
      EXPECT_GT(reference.norm, 0);
      ASSERT_GT(blocks(world->size(), layout), 1);
      Rig rig(*world, wide_llama(), pesc, many_rows(), layout);
      EXPECT_NEAR(rig.train(&choices) / loss, 1.0, 1e-6);
      EXPECT_NEAR(rig.norm / reference.norm, 1.0, 1e-5);
      const Tensors got = rig.gradients();
      ASSERT_EQ(got.size(), want.size());
      double worst = 0;
      for (const auto& [name, values] : want) {
        const double error = relative_error(got.at(name), values);
        worst = std::max(worst, error);
        EXPECT_LT(error, 1e-5) << name;
      }
      if (world->rank() == 0) std::printf("tp %d, %d chunks: gradients apart by %.1e\n", tp, chunks, worst);
    }
  }
}

TEST(SharedFfnInBlocks, BlocksGiveTheSameFfnWithExperts) {
  same_in_blocks(tiny_pesc());
}

TEST(SharedFfnInBlocks, BlocksGiveTheSameFfnWithLoraAlone) {
  PescConfig pesc = dense_only();
  pesc.lora = tiny_pesc().lora;
  same_in_blocks(pesc);
}

TEST(SharedFfnInBlocks, BlocksGiveTheSameFfnWithLoraOnSomeLinears) {
  same_in_blocks(odd_pesc());
  PescConfig down = tiny_pesc();
  down.lora.target_modules = {Linear::kV, Linear::kDown};
  same_in_blocks(down);
}

TEST(SharedFfnInBlocks, NoLoraOnTheFfn) {
  PescConfig pesc = tiny_pesc();
  pesc.lora.target_modules = {Linear::kQ, Linear::kO};
  same_in_blocks(pesc);
}

}  // namespace
}  // namespace pesc
