// ranks: 1 2 4
// A model just made sparse (adapter up = 0, LoRA B = 0) is the dense model, dropout or not: bit for bit in
// float32, within rounding in BF16 on a GPU.
#include <gtest/gtest.h>

#include <cstdio>

#include "tests/golden_bounds.h"
#include "tests/model/rig.h"

namespace pesc {
namespace {

void same_logits(const ModelConfig& model, const PescConfig& pesc, int tp, int ep, const Rows& rows) {
  const MpiSession session;
  const auto world = test_world(session);
  Rig sparse(*world, model, pesc, rows, {tp, ep});
  Rig dense(*world, model, dense_only(), rows, {tp, 1});
  for (Rig* rig : {&sparse, &dense})
    rig->decoder->parameters().initialise(rig->decoder->stream(), nullptr, 3, 0.3);
  const std::vector<float> want = dense.all_logits(ForwardMode::kEval);
  EXPECT_TRUE(same_bits(sparse.all_logits(ForwardMode::kEval), want)) << "tp " << tp << ", ep " << ep;
  EXPECT_TRUE(same_bits(sparse.all_logits(ForwardMode::kTrain), want))
      << "with dropout, tp " << tp << ", ep " << ep;
  ASSERT_EQ(static_cast<int64_t>(want.size()), count_tokens(rows) * model.vocab_size);
  // And it is only the zeros that make them equal.
  randomise_trainable(*sparse.decoder);
  EXPECT_FALSE(same_bits(sparse.all_logits(ForwardMode::kEval), want));
}

TEST(DenseEqual, AModelJustMadeSparseIsTheDenseModelOnEveryLayout) {
  const MpiSession session;
  const int ranks = session.world()->size();
  for (const int tp : {1, 2, 4}) {
    for (const int ep : {1, 2, 4}) {
      if (ranks % tp != 0 || ranks % ep != 0) continue;
      same_logits(tiny_llama(), tiny_pesc(), tp, ep, five_rows(tiny_llama()));
      same_logits(odd_llama(), odd_pesc(), tp, ep, five_rows(odd_llama()));
      same_logits(tiny_qwen2(), tiny_pesc(), tp, ep, five_rows(tiny_qwen2()));
      same_logits(tiny_qwen3(), tiny_pesc(), tp, ep, five_rows(tiny_qwen3()));
    }
  }
}

TEST(DenseEqual, AModelJustMadeSparseIsTheDenseModelInBlocks) {
  const MpiSession session;
  const int ranks = session.world()->size();
  same_logits(wide_llama(), tiny_pesc(), std::min(ranks, 2), ranks, many_rows());
}

// How far the sparse model's logits are from the dense one's: the zeros change no value, but GEMMs with
// LoRA's B beside the weight may be summed up by another kernel. The bound is the goldens' for BF16 against
// float32, golden_bounds.h.
void close_in_bf16(const Rows& rows, int tp, int ep) {
  const MpiSession session;
  const auto world = test_world(session);
  const ModelConfig model = bf16_llama();
  GoldenNumbers numbers;
  numbers.compute = DType::kBF16;
  const double bound = GoldenBounds::of(numbers, model.num_hidden_layers).logits;
  Rig sparse(*world, model, bf16_pesc(), rows, {.tp = tp, .ep = ep, .compute = DType::kBF16});
  Rig dense(*world, model, dense_only(), rows, {.tp = tp, .compute = DType::kBF16});
  // Of this deviation q, k and v are about as large as what the norms make.
  for (Rig* rig : {&sparse, &dense})
    rig->decoder->parameters().initialise(rig->decoder->stream(), nullptr, 3, 0.06);
  const std::vector<float> want = dense.all_logits(ForwardMode::kEval);
  ASSERT_EQ(static_cast<int64_t>(want.size()), count_tokens(rows) * model.vocab_size);
  const double apart = relative_error(sparse.all_logits(ForwardMode::kEval), want);
  const double dropped = relative_error(sparse.all_logits(ForwardMode::kTrain), want);
  if (world->rank() == 0)
    std::printf("BF16, tp %d, ep %d: relative difference %.1e, with dropout %.1e, bound %.1e\n", tp, ep,
                apart, dropped, bound);
  EXPECT_LE(apart, bound);
  EXPECT_LE(dropped, bound);
  randomise_trainable(*sparse.decoder);
  EXPECT_GT(relative_error(sparse.all_logits(ForwardMode::kEval), want), 2 * bound);
}

TEST(DenseEqual, WithinRoundingInBf16OnGpu) {
  ASSERT_TRUE(test_on_gpu());  // BF16 is a GPU's
  const MpiSession session;
  const int ranks = session.world()->size();
  const int64_t vocab = bf16_llama().vocab_size;
  for (const int tp : {1, 2, 4}) {
    for (const int ep : {1, 2, 4}) {
      if (ranks % tp != 0 || ranks % ep != 0) continue;
      close_in_bf16(some_rows(vocab, {40, 7, 64, 1, 30}), tp, ep);
      close_in_bf16(some_rows(vocab, std::vector<int64_t>(4, 64)), tp, ep);
    }
  }
}

}  // namespace
}  // namespace pesc
