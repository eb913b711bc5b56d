// ranks: 2 4
// Gathering the adapters' weights instead of sending tokens: a rank computes as with ep = 1, so that on a CPU the logits
// are the same bits as there, and where one expert group is the world and one micro-batch the step, the gradients too.
// Against the exchange of tokens it is a matter of rounding. layouts_test.cc, recompute_test.cc, overlap_test.cc and
// generation_test.cc have cases of it too.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "tests/model/rig.h"

namespace pesc {
namespace {

constexpr auto kWeights = ExpertExchange::kWeights;

ModelConfig deep(ModelConfig m) {
  m.num_hidden_layers = 5;  // more than there are buffers, and an odd number of them
  return m;
}

// NCCL sums in the order of a ring, which a reduce-scatter begins elsewhere than an all-reduce.
void expect_same(const Tensors& got, const Tensors& want) {
  ASSERT_EQ(got.size(), want.size());
  for (const auto& [name, values] : want) {
    if (test_on_gpu()) {
      EXPECT_LT(relative_error(got.at(name), values), 2e-5) << name;
    } else {
      EXPECT_TRUE(same_bits(got.at(name), values)) << name;
    }
  }
}

void same_as_without_groups(const ModelConfig& model, const PescConfig& pesc, const Rows& rows) {
  const MpiSession session;
  const auto world = test_world(session);
  for (const int tp : {1, 2}) {
    SCOPED_TRACE(str_cat("tp ", tp));
    Rig want(*world, model, pesc, rows, {.tp = tp});
    const double loss = want.train();
    const Tensors gradients = want.gradients();
    const std::vector<float> logits = want.all_logits(ForwardMode::kEval);
    for (const Overlap overlap : {Overlap::kOff, Overlap::kOn}) {  // one buffer, two
      Rig got(*world, model, pesc, rows,
              {.tp = tp, .ep = world->size(), .overlap = overlap, .exchange = kWeights});
      EXPECT_EQ(got.train(), loss);
      expect_same(got.gradients(), gradients);
      EXPECT_NEAR(got.norm / want.norm, 1, 1e-6);
      EXPECT_TRUE(same_bits(got.all_logits(ForwardMode::kEval), logits));
      EXPECT_EQ(got.decoder->dispatch_rounds(), 1);
    }
    Rig answers(*world, model, pesc, rows,
                {.tp = tp, .ep = world->size(), .purpose = Purpose::kInference, .exchange = kWeights});
    EXPECT_TRUE(same_bits(answers.all_logits(ForwardMode::kEval), logits));
  }
}

TEST(ExpertExchange, WeightsOverTheWorldAreTheBitsOfEpOne) {
  same_as_without_groups(deep(tiny_llama()), tiny_pesc(), five_rows(tiny_llama()));
}
TEST(ExpertExchange, WeightsOfOddShapesAreTheBitsOfEpOne) {
  same_as_without_groups(odd_llama(), odd_pesc(), five_rows(odd_llama()));
}
TEST(ExpertExchange, RanksWithoutRowsGatherToo) {
  same_as_without_groups(deep(tiny_llama()), tiny_pesc(), some_rows(tiny_llama().vocab_size, {6}));
}

// Two micro-batches: the gradients of the second are added to those of the first.
Tensors two_micro_batches(Communicator& world, const Layout& layout, std::vector<double>& losses) {
  Rig rig(world, deep(tiny_llama()), tiny_pesc(), five_rows(tiny_llama()), layout);
  rig.decoder->zero_gradients();
  for (const uint32_t step : {3U, 4U}) {  // other masks
    rig.step = step;
    losses.push_back(rig.loss(nullptr, HeadMode::kLossAndGradient));
    rig.decoder->backward();
  }
  losses.push_back(
      GradientReducer(*rig.decoder, rig.ranks.reduction(), Reduce::kAtEnd).finish(rig.ranks.world()));
  return rig.gradients();
}

TEST(ExpertExchange, MicroBatchesAddUpAsWithTokens) {
  const MpiSession session;
  const auto world = test_world(session);
  const int n = world->size();
  for (const Layout& layout :
       {Layout{.tp = 1, .ep = n}, Layout{.tp = 2, .ep = n}, Layout{.tp = 1, .ep = 2}}) {
    SCOPED_TRACE(str_cat("tp ", layout.tp, ", ep ", layout.ep));
    std::vector<double> want, got;
    const Tensors tokens = two_micro_batches(*world, layout, want);
    Layout other = layout;
    other.exchange = kWeights;
    const Tensors weights = two_micro_batches(*world, other, got);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i] / want[i], 1, 1e-5);
    ASSERT_EQ(weights.size(), tokens.size());
    for (const auto& [name, values] : tokens)
      EXPECT_LT(relative_error(weights.at(name), values), 5e-5) << name;
  }
}

// The buffers hold weights of before the update, and the next forward gathers them again. Without clipping, whose norm is
// summed in another order, steps of AdamW keep the bits of ep = 1.
TEST(ExpertExchange, UpdatesReachEveryRank) {
  const MpiSession session;
  const auto world = test_world(session);
  const int n = world->size();
  const double lr = test_on_gpu() ? 1e-3 : 1e-2;
  const auto four_steps = [&](const Layout& layout, Tensors& values) {
    Rig rig(*world, deep(tiny_llama()), tiny_pesc(), five_rows(tiny_llama()), layout);
    std::vector<double> curve;
    for (int64_t step = 1; step <= 4; ++step) {
      curve.push_back(rig.train());
      optimizer_step(*rig.decoder, {.clip_norm = 0}, lr, step, rig.norm);
    }
    values = rig.values();
    return curve;
  };
  Tensors want, got;
  const std::vector<double> curve = four_steps({}, want);
  const std::vector<double> gathered = four_steps({.ep = n, .exchange = kWeights}, got);
  EXPECT_GT(std::abs(curve[1] / curve[0] - 1), 1e-3);
  if (test_on_gpu()) {
    for (size_t i = 0; i < curve.size(); ++i) EXPECT_NEAR(gathered[i] / curve[i], 1, 1e-4) << i;
  } else {
    EXPECT_EQ(gathered, curve);
    expect_same(got, want);
  }
}

// Gives every token the experts that are one further than the router's choices of the first forward.
class OneFurther : public FirstChoices {
 public:
  bool replay(const Batch& batch, int64_t layer, std::vector<int32_t>& experts) override {
    if (!FirstChoices::replay(batch, layer, experts)) return false;
    for (int32_t& e : experts) e = (e + 1) % 8;
    return true;
  }
  void record(const Batch& batch, int64_t layer, const std::vector<int32_t>& experts) override {
    if (recorded_.insert(layer).second) FirstChoices::record(batch, layer, experts);
  }

 private:
  std::set<int64_t> recorded_;
};

TEST(ExpertExchange, RoutingIsReplayed) {
  const MpiSession session;
  const auto world = test_world(session);
  OneFurther choices;
  std::vector<double> losses;
  std::vector<std::vector<int32_t>> replayed;
  for (const ExpertExchange exchange : {ExpertExchange::kTokens, kWeights}) {
    Rig rig(*world, tiny_llama(), tiny_pesc(), five_rows(tiny_llama()),
            {.ep = world->size(), .exchange = exchange});
    if (exchange == ExpertExchange::kTokens) losses.push_back(rig.loss(&choices));  // records
    losses.push_back(rig.loss(&choices));
    replayed.push_back(rig.decoder->topk_indices(1));
  }
  EXPECT_EQ(replayed[1], replayed[0]);
  EXPECT_GT(std::abs(losses[1] / losses[0] - 1), 1e-4);  // other experts
  EXPECT_NEAR(losses[2] / losses[1], 1, 1e-6);
}

// The buffers of received rows give way to those of all experts.
TEST(ExpertExchange, TakesNoRoomForReceivedRows) {
  const auto bytes = [](ExpertExchange exchange, Purpose purpose, Overlap overlap) {
    const ModelConfig model = tiny_llama();
    const Mesh mesh(8, 0, 1, 8);
    const Layout layout{.ep = 8, .purpose = purpose, .overlap = overlap, .exchange = exchange};
    std::map<std::string, int64_t> arenas;
    for (const ArenaSize& a :
         Decoder::plan(model, tiny_pesc(), mesh, options_of(model, tiny_pesc(), mesh, layout, 4000)))
      arenas[a.name] = a.bytes;
    return arenas;
  };
  auto tokens = bytes(ExpertExchange::kTokens, Purpose::kTraining, Overlap::kOff);
  auto weights = bytes(kWeights, Purpose::kTraining, Overlap::kOff);
  EXPECT_LT(weights["activations"], tokens["activations"]);
  EXPECT_LT(weights["workspace"], tokens["workspace"]);
  EXPECT_EQ(weights["dispatch"], 0);
  EXPECT_EQ(weights["optimizer"], tokens["optimizer"]);
  EXPECT_EQ(weights["weights"], tokens["weights"]);
  // A second buffer of the weights of 8 experts of size 5 where they are gathered ahead; for inference no gradients.
  const int64_t all = 2 * 8 * 5 * 32 * 4;
  auto ahead = bytes(kWeights, Purpose::kTraining, Overlap::kOn);
  EXPECT_EQ(ahead["workspace"] - weights["workspace"], all);
  auto answers = bytes(kWeights, Purpose::kInference, Overlap::kOff);
  EXPECT_GE(weights["workspace"] - answers["workspace"], all + all / 2 / 8);
  EXPECT_LT(weights["workspace"] - answers["workspace"], all + all / 2 / 8 + Arena::kAlignment);
}

}  // namespace
}  // namespace pesc
