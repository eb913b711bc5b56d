// ranks: 1 2 4
// A model just made sparse (adapter up = 0, LoRA B = 0) is the dense model, bit for bit, dropout or not.
#include <gtest/gtest.h>

#include "tests/model/rig.h"

namespace pesc {
namespace {

void same_logits(const ModelConfig& model, const PescConfig& pesc, int tp, int ep) {
  const MpiSession session;
  const auto world = test_world(session);
  const Rows rows = five_rows(model);
  Rig sparse(*world, model, pesc, rows, {tp, ep});
  Rig dense(*world, model, dense_only(), rows, {tp, 1});
  for (Rig* rig : {&sparse, &dense})
    rig->decoder->parameters().initialise(rig->decoder->stream(), nullptr, 3, 0.3);
  const std::vector<float> want = dense.all_logits(PassKind::kEval);
  EXPECT_TRUE(same_bits(sparse.all_logits(PassKind::kEval), want)) << "tp " << tp << ", ep " << ep;
  EXPECT_TRUE(same_bits(sparse.all_logits(PassKind::kTrain), want))
      << "with dropout, tp " << tp << ", ep " << ep;
  ASSERT_EQ(static_cast<int64_t>(want.size()), count_tokens(rows) * model.vocab);
  // And it is only the zeros that make them equal.
  randomise(*sparse.decoder);
  EXPECT_FALSE(same_bits(sparse.all_logits(PassKind::kEval), want));
}

TEST(DenseEqual, EveryLayout) {
  const MpiSession session;
  const int ranks = session.world()->size();
  for (const int tp : {1, 2, 4}) {
    for (const int ep : {1, 2, 4}) {
      if (ranks % tp != 0 || ranks % ep != 0) continue;
      same_logits(tiny_llama(), tiny_pesc(), tp, ep);
      same_logits(odd_llama(), odd_pesc(), tp, ep);
      same_logits(tiny_qwen2(), tiny_pesc(), tp, ep);
    }
  }
}

}  // namespace
}  // namespace pesc
