// Training under each recompute policy, for the tests on both devices: three steps of AdamW with dropout must
// be the same bits under all of them, while less memory is planned from one to the next, and taken as
// planned.
#pragma once

#include <gtest/gtest.h>

#include "tests/model/rig.h"

namespace pesc {

struct Outcome {
  std::vector<double> curve;
  Tensors gradients, values;  // after the first step, after the last
  int64_t activations = 0;    // bytes of that arena
};

inline int64_t activations(const std::vector<ArenaSize>& arenas) {
  for (const ArenaSize& a : arenas)
    if (a.name == "activations") return a.bytes;
  return 0;
}

inline Outcome three_steps(Communicator& world, const ModelConfig& model, const PescConfig& pesc,
                           const Rows& rows, const Layout& layout) {
  Rig rig(world, model, pesc, rows, layout);
  Outcome out;
  for (int64_t step = 1; step <= 3; ++step) {
    rig.step = static_cast<uint32_t>(step);
    out.curve.push_back(rig.train());
    out.curve.push_back(rig.norm);
    if (step == 1) out.gradients = rig.gradients();
    optimizer_step(*rig.decoder, {.weight_decay = 0.1, .clip_norm = 0.5}, 3e-3, step, rig.norm);
  }
  if (layout.buffer_factor < 1) {
    EXPECT_GT(rig.decoder->dispatch_rounds(), 1);
  }
  out.values = rig.values();
  const Mesh& mesh = rig.ranks.mesh();
  const auto planned =
      Decoder::plan(model, pesc, mesh, options_of(model, pesc, mesh, layout, count_tokens(rows)));
  const auto taken = rig.decoder->arenas();
  EXPECT_EQ(planned.size(), taken.size());
  for (size_t i = 0; i < planned.size(); ++i) EXPECT_EQ(planned[i].bytes, taken[i].bytes) << planned[i].name;
  out.activations = activations(taken);
  return out;
}

inline void expect_same(const Tensors& got, const Tensors& want, const char* what) {
  ASSERT_EQ(got.size(), want.size());
  for (const auto& [name, values] : want) EXPECT_TRUE(same_bits(got.at(name), values)) << what << " " << name;
}

inline void same_under_every_policy(const ModelConfig& model, const PescConfig& pesc, const Rows& rows,
                                    Layout layout) {
  const MpiSession session;
  const auto world = test_world(session);
  SCOPED_TRACE(str_cat(world->size(), " ranks, tp ", layout.tp, ", ep ", layout.ep, ", buffer_factor ",
                       layout.buffer_factor, ", chunks ", layout.chunks, ", ", dtype_name(layout.compute),
                       ", ", expert_exchange_name(layout.exchange),
                       layout.frozen ? str_cat(", ", frozen_format_name(*layout.frozen)) : "",
                       layout.frozen_gemm == FrozenGemm::kFP8 ? ", FP8 GEMMs" : ""));
  const Outcome none = three_steps(*world, model, pesc, rows, layout);
  int64_t before = none.activations;
  for (const Recompute recompute : {Recompute::kSelective, Recompute::kFull}) {
    SCOPED_TRACE(recompute == Recompute::kSelective ? "selective" : "full");
    layout.recompute = recompute;
    const Outcome out = three_steps(*world, model, pesc, rows, layout);
    EXPECT_EQ(out.curve, none.curve);
    expect_same(out.gradients, none.gradients, "gradient of");
    expect_same(out.values, none.values, "value of");
    EXPECT_LT(out.activations, before);
    before = out.activations;
  }
}

inline std::vector<Layout> policy_layouts(int ranks, bool experts) {
  std::vector<Layout> all{{.tp = 1, .ep = 1}};
  if (ranks == 1) all.push_back({.tp = 1, .ep = 1, .threads = 2});
  if (ranks >= 2) all.push_back({.tp = 2, .ep = 1});
  if (ranks == 4) all.push_back({.tp = 4, .ep = 1});
  if (!experts || ranks == 1) return all;
  for (const int tp : {1, 2}) {
    all.push_back({.tp = tp, .ep = ranks});
    all.push_back({.tp = tp, .ep = ranks, .buffer_factor = 0.1});  // several exchange rounds
    all.push_back({.tp = tp, .ep = ranks, .chunks = 2});
    all.push_back({.tp = tp, .ep = ranks, .buffer_factor = 0.1, .chunks = 2});
    // Weights gathered a layer ahead, or one layer at a time.
    all.push_back({.tp = tp,
                   .ep = ranks,
                   .overlap = tp == 1 ? Overlap::kOn : Overlap::kOff,
                   .exchange = ExpertExchange::kWeights});
  }
  return all;
}

}  // namespace pesc
