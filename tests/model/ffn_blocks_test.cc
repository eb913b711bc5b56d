// ranks: 1 2 4
// The FFN block by block gives what it gives over all tokens at once: loss, gradient norm and every gradient,
// with dropout, with and without experts, and with LoRA on all, some and none of its linears. The reference
// has so many threads that its caches hold all tokens in one block.
#include "model/ffn_blocks.h"

#include <gtest/gtest.h>

#include "ops/core/threads.h"
#include "tests/model/rig.h"

namespace pesc {
namespace {

constexpr int kManyThreads = 8;

ModelConfig wide_llama() {
  ModelConfig m = tiny_llama();
  m.ffn = 200;
  return m;
}

Rows many_rows() {
  return some_rows(wide_llama().vocab, std::vector<int64_t>(44, 30));
}

// Whether the widest rank's tokens are more than a block.
bool in_blocks(int ranks, const Layout& layout) {
  const ModelConfig m = wide_llama();
  const int64_t bytes = 4 * (4 * m.ffn / layout.tp + 2 * m.hidden);
  const int64_t tokens = count_tokens(many_rows()) / (ranks / layout.tp);
  return rows_in_cache(Stream(Device{.threads = layout.threads}), bytes, 256) < tokens;
}

void same_in_blocks(const PescConfig& pesc) {
  const MpiSession session;
  const auto world = test_world(session);
  const auto own = alone(*world);
  const Layout whole{.threads = kManyThreads};
  ASSERT_FALSE(in_blocks(1, whole));
  Rig reference(*own, wide_llama(), pesc, many_rows(), whole);
  const double loss = reference.train();
  const Tensors want = reference.gradients();
  EXPECT_GT(reference.norm, 0);
  for (const int tp : {1, 2, 4}) {
    for (const int chunks : {1, 2}) {
      Layout layout{.tp = tp, .chunks = chunks};
      if (world->size() % tp != 0) continue;
      if (pesc.mode == TrainMode::kPesc) layout.ep = world->size();
      if (chunks == 2 && layout.ep == 1) continue;
      SCOPED_TRACE(str_cat(world->size(), " ranks, tp ", tp, ", ", chunks, " chunks"));
      if (chunks == 1) {
        ASSERT_TRUE(in_blocks(world->size(), layout));
      }
      Rig rig(*world, wide_llama(), pesc, many_rows(), layout);
      EXPECT_NEAR(rig.train() / loss, 1.0, 1e-5);
      EXPECT_NEAR(rig.norm / reference.norm, 1.0, 1e-5);
      const Tensors got = rig.gradients();
      ASSERT_EQ(got.size(), want.size());
      for (const auto& [name, values] : want) EXPECT_LT(relative_error(got.at(name), values), 1e-4) << name;
    }
  }
}

TEST(FfnBlocks, Experts) {
  same_in_blocks(tiny_pesc());
}

TEST(FfnBlocks, LoraAlone) {
  PescConfig pesc = dense_only();
  pesc.lora = tiny_pesc().lora;
  same_in_blocks(pesc);
}

TEST(FfnBlocks, LoraOnSomeLinears) {
  same_in_blocks(odd_pesc());
  PescConfig down = tiny_pesc();
  down.lora.targets = {Linear::kV, Linear::kDown};
  same_in_blocks(down);
}

TEST(FfnBlocks, NoLoraOnTheFfn) {
  PescConfig pesc = tiny_pesc();
  pesc.lora.targets = {Linear::kQ, Linear::kO};
  same_in_blocks(pesc);
}

}  // namespace
}  // namespace pesc
