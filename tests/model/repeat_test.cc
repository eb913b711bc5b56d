// ranks: 1 4
// Two runs of one layout are the same bit for bit, with threads too; five steps of AdamW with dropout. On a
// GPU in BF16 as well.
#include <gtest/gtest.h>

#include "tests/model/rig.h"

namespace pesc {
namespace {

struct Outcome {
  std::vector<double> curve;
  Tensors values;
};

Outcome five_steps(Communicator& world, const ModelConfig& model, const PescConfig& pesc, const Rows& rows,
                   const Layout& layout) {
  Rig rig(world, model, pesc, rows, layout);
  Outcome out;
  for (int64_t step = 1; step <= 5; ++step) {
    out.curve.push_back(rig.train());
    out.curve.push_back(rig.norm);
    optimizer_step(*rig.decoder, {.weight_decay = 0.1, .clip_norm = 0.5}, 3e-3, step, rig.norm);
  }
  out.values = rig.values();
  return out;
}

void same_twice(const ModelConfig& model, const PescConfig& pesc, const Rows& rows, const Layout& layout) {
  const MpiSession session;
  const auto world = test_world(session);
  const Outcome first = five_steps(*world, model, pesc, rows, layout);
  const Outcome second = five_steps(*world, model, pesc, rows, layout);
  EXPECT_EQ(first.curve, second.curve);
  EXPECT_NE(first.curve.front(), first.curve[8]);
  ASSERT_EQ(first.values.size(), second.values.size());
  for (const auto& [name, values] : first.values)
    EXPECT_TRUE(same_bits(values, second.values.at(name))) << name;
}

TEST(Repeat, TheSameLayoutGivesTheSameBits) {
  const MpiSession session;
  const int n = session.world()->size();
  // Wide enough for several threads to have work.
  ModelConfig wide = tiny_llama();
  wide.hidden_size = 256;
  wide.intermediate_size = 512;
  const Layout one_thread{.tp = n > 1 ? 2 : 1, .ep = n};
  const Layout two_threads{.tp = n > 1 ? 2 : 1, .ep = n, .threads = 2};
  for (const Layout& layout : {one_thread, two_threads}) {
    const ModelConfig& model = n > 1 ? tiny_llama() : wide;
    same_twice(model, tiny_pesc(), five_rows(model), layout);
    same_twice(tiny_qwen2(), full_tuning(), five_rows(tiny_qwen2()),
               {.tp = layout.tp, .threads = layout.threads});
  }
}

TEST(Repeat, AnFfnInBlocksRepeatsBitForBit) {
  const MpiSession session;
  const int n = session.world()->size();
  for (const int threads : {1, 2})
    same_twice(wide_llama(), tiny_pesc(), many_rows(42), {.tp = n > 1 ? 2 : 1, .ep = n, .threads = threads});
}

// Attention is the library's: of a dense batch, and of ragged ones.
TEST(Repeat, AStepInBf16RepeatsBitForBitOnGpu) {
  ASSERT_TRUE(test_on_gpu());  // BF16 is a GPU's
  const MpiSession session;
  const int n = session.world()->size();
  const ModelConfig model = bf16_llama();
  const Layout layout{.tp = n > 1 ? 2 : 1, .ep = n, .compute = DType::kBF16};
  for (const std::vector<int64_t>& lengths :
       {std::vector<int64_t>(4, 128), std::vector<int64_t>(8, 64), std::vector<int64_t>{40, 7, 64, 1, 30}}) {
    const Rows rows = some_rows(model.vocab_size, lengths);
    same_twice(model, bf16_pesc(), rows, layout);
    same_twice(model, full_tuning(), rows, {.tp = layout.tp, .compute = DType::kBF16});
  }
}

}  // namespace
}  // namespace pesc
