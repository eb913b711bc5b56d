// ranks: 2 4
// What overlaps with the computation changes no bit: gradients reduced layer by layer while the backward runs
// or all after it, and, on a GPU, collectives on the comm stream or not (the CPU has none). And two chunks of
// tokens give what one gives, within rounding, whatever their lengths.
#include <gtest/gtest.h>

#include "tests/model/rig.h"

namespace pesc {
namespace {

// On a GPU large enough that work which does not wait for what it needs comes too early.
ModelConfig model_of_size() {
  ModelConfig m = tiny_llama();
  m.num_hidden_layers = 4;
  if (test_on_gpu()) {
    m.hidden_size = 512;
    m.intermediate_size = 1024;
    m.head_dim = 128;
  }
  return m;
}
Rows rows_of_size(const ModelConfig& m) {
  if (!test_on_gpu()) return five_rows(m);
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < 96; ++i) lengths.push_back(20 + i % 45);
  return some_rows(m.vocab_size, lengths);
}

struct Outcome {
  std::vector<double> curve;
  Tensors gradients, values;
};
Outcome three_steps(Communicator& world, const PescConfig& pesc, const Layout& layout) {
  const ModelConfig model = model_of_size();
  Rig rig(world, model, pesc, rows_of_size(model), layout);
  Outcome out;
  for (int64_t step = 1; step <= 3; ++step) {
    rig.step = static_cast<uint32_t>(step);
    out.curve.push_back(rig.train());
    out.curve.push_back(rig.norm);
    if (step == 1) out.gradients = rig.gradients();
    optimizer_step(*rig.decoder, {.weight_decay = 0.1, .clip_norm = 0.5}, 3e-3, step, rig.norm);
  }
  out.values = rig.values();
  return out;
}

void expect_same(const Outcome& got, const Outcome& want) {
  EXPECT_EQ(got.curve, want.curve);
  for (const auto& [mine, others] :
       {std::pair{&got.gradients, &want.gradients}, {&got.values, &want.values}}) {
    ASSERT_EQ(mine->size(), others->size());
    for (const auto& [name, values] : *others) EXPECT_TRUE(same_bits(mine->at(name), values)) << name;
  }
}

std::vector<Layout> plain_layouts(int ranks, bool experts) {
  std::vector<Layout> all{{1, 1}, {ranks, 1}};
  if (experts)
    all = {{ranks, 1},
           {1, ranks},
           {1, ranks, 2, 1, 0, Purpose::kTraining, 2},
           {2, ranks, 0.1},
           {2, 2, 0.1, 1, 0, Purpose::kTraining, 2},
           {.tp = 1, .ep = ranks, .exchange = ExpertExchange::kWeights},
           {.tp = 2, .ep = 2, .exchange = ExpertExchange::kWeights}};
  for (Layout& l : all) l.overlap = Overlap::kOff;
  return all;
}

// Against a run that does one thing after the other.
void same_bits_beside(const PescConfig& pesc, Overlap overlap) {
  const MpiSession session;
  const auto world = test_world(session);
  for (Layout layout : plain_layouts(world->size(), pesc.mode == TrainMode::kPesc)) {
    SCOPED_TRACE(str_cat("tp ", layout.tp, ", ep ", layout.ep, ", buffer_factor ", layout.buffer_factor,
                         ", chunks ", layout.chunks, ", ", expert_exchange_name(layout.exchange)));
    const Outcome want = three_steps(*world, pesc, layout);
    layout.overlap = overlap;
    layout.reduce = Reduce::kOverlapped;
    for (int run = 0; run < 2; ++run) expect_same(three_steps(*world, pesc, layout), want);
  }
}

TEST(Overlap, SumsBehindLayersChangeNoBitOfPesc) {
  same_bits_beside(tiny_pesc(), Overlap::kOff);
}
TEST(Overlap, SumsBehindLayersChangeNoBitWithoutExperts) {
  same_bits_beside(dense_only(), Overlap::kOff);
}
TEST(Overlap, SumsBehindLayersChangeNoBitOfFullTuning) {
  same_bits_beside(full_tuning(), Overlap::kOff);
}
TEST(Overlap, ChangesNoBitOfPescOnGpu) {
  ASSERT_TRUE(test_on_gpu());
  same_bits_beside(tiny_pesc(), Overlap::kOn);
}
TEST(Overlap, ChangesNoBitWithoutExpertsOnGpu) {
  ASSERT_TRUE(test_on_gpu());
  same_bits_beside(dense_only(), Overlap::kOn);
}
TEST(Overlap, ChangesNoBitOfFullTuningOnGpu) {
  ASSERT_TRUE(test_on_gpu());
  same_bits_beside(full_tuning(), Overlap::kOn);
}

// Every trainable gradient stands in the part of its layer, and the parts fill the flat buffer.
TEST(Overlap, LayerGradientsFillTheFlatBuffer) {
  const Mesh mesh(8, 3, 2, 4);
  ModelConfig model = tiny_llama();
  model.num_hidden_layers = 12;
  for (const PescConfig& pesc : {tiny_pesc(), dense_only(), full_tuning()}) {
    Arena weights("weights", Device{}, int64_t{4} << 20);
    Arena copies("copies", Device{}, 0);
    Arena optimizer("optimizer", Device{}, int64_t{8} << 20);
    const ModelParameters p(model, pesc, mesh, DType::kF32, {weights, copies, &optimizer});
    for (int g = 0; g < kReplicaGroups; ++g) {
      const auto group = static_cast<ReplicaGroup>(g);
      const auto* next = static_cast<const float*>(p.flat_grad(group).data) + p.other_grads(group).cols;
      for (int64_t i = 0; i < model.num_hidden_layers; ++i) {
        const Tensor part = p.layer_grads(group, i, i + 1);
        EXPECT_EQ(part.data, next);
        next += part.cols;
      }
      EXPECT_EQ(next, static_cast<const float*>(p.flat_grad(group).data) + p.flat_grad(group).cols);
    }
    for (const Parameter& q : p.all()) {
      if (!q.trainable) continue;
      const size_t at = q.spec.name.find("layers.");
      const Tensor part = at == std::string::npos
                              ? p.other_grads(q.group)
                              : p.layer_grads(q.group, std::stoi(q.spec.name.substr(at + 7)),
                                              std::stoi(q.spec.name.substr(at + 7)) + 1);
      EXPECT_GE(q.grad.f32(), part.f32()) << q.spec.name;
      EXPECT_LE(q.grad.f32() + q.grad.size(), part.f32() + part.cols) << q.spec.name;
    }
  }
}

TEST(Overlap, ChunksOfAnyLength) {
  const MpiSession session;
  const auto world = test_world(session);
  const ModelConfig model = tiny_llama();
  for (const auto& lengths : {std::vector<int64_t>{1}, {2}, {3, 1}, {9}, {4, 4, 5, 5, 1}}) {
    for (const double buffer_factor : {2.0, 0.1}) {
      SCOPED_TRACE(
          str_cat(lengths.size(), " rows, the first of ", lengths[0], ", buffer_factor ", buffer_factor));
      const Rows rows = some_rows(model.vocab_size, lengths);
      Rig one(*world, model, tiny_pesc(), rows, {1, world->size(), buffer_factor});
      Rig two(*world, model, tiny_pesc(), rows,
              {.ep = world->size(), .buffer_factor = buffer_factor, .chunks = 2});
      EXPECT_NEAR(two.train() / one.train(), 1.0, 1e-6);
      const Tensors want = one.gradients();
      for (const auto& [name, values] : two.gradients())
        EXPECT_LT(relative_error(values, want.at(name)), 2e-5) << name;
    }
  }
}

TEST(Overlap, CutsWholeTilesWhereThereAreMany) {
  for (const int64_t slice : {0, 1, 2, 7, 1000, 1025, 4096, 5000, 16384}) {
    EXPECT_EQ(chunk_rows(slice, 1).size(), 1U);
    const std::vector<Range> two = chunk_rows(slice, 2);
    ASSERT_EQ(two.size(), 2U);
    EXPECT_EQ(two[0].begin, 0);
    EXPECT_EQ(two[0].end, two[1].begin);
    EXPECT_EQ(two[1].end, slice);
    EXPECT_GE(two[0].size(), two[1].size());
    EXPECT_GE(two[1].size(), 0);
    if (slice > 1024) {
      EXPECT_EQ(two[0].end % 256, 0);
    }
    // The plan's chunk holds those of every shorter slice.
    if (slice > 0) {
      EXPECT_GE(two[0].size(), chunk_rows(slice - 1, 2)[0].size());
    }
  }
}

}  // namespace
}  // namespace pesc
