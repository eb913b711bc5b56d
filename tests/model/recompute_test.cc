// ranks: 1 2 4
// What a backward derives again is what the forward had, bit for bit: under every policy the gradients and a
// few steps of AdamW with dropout are the same, while less memory is planned, and taken as planned.
#include <gtest/gtest.h>

#include "tests/model/rig.h"

namespace pesc {
namespace {

struct Outcome {
  std::vector<double> curve;
  Tensors gradients, values;  // after the first step, after the last
  int64_t activations = 0;    // bytes of that arena
};

int64_t activations(const std::vector<ArenaSize>& arenas) {
  for (const ArenaSize& a : arenas)
    if (a.name == "activations") return a.bytes;
  return 0;
}

Outcome three_steps(Communicator& world, const ModelConfig& model, const PescConfig& pesc, const Rows& rows,
                    const Layout& layout) {
  Rig rig(world, model, pesc, rows, layout);
  rig.decoder->parameters().refresh_copies(rig.decoder->stream());
  Outcome out;
  for (int64_t step = 1; step <= 3; ++step) {
    rig.step = static_cast<uint32_t>(step);
    out.curve.push_back(rig.train());
    out.curve.push_back(rig.norm);
    if (step == 1) out.gradients = rig.gradients();
    optimizer_step(*rig.decoder, {.weight_decay = 0.1, .clip_norm = 0.5}, 3e-3, step, rig.norm);
  }
  if (layout.headroom < 1) {
    EXPECT_GT(rig.decoder->exchange_rounds(), 1);
  }
  out.values = rig.values();
  DecoderOptions o;
  o.device = test_device(layout.threads);
  o.capacity = {count_tokens(rows), model.max_positions, layout.headroom, 8};
  o.max_positions = model.max_positions;
  o.recompute = layout.recompute;
  o.compute = layout.compute;
  const auto planned = Decoder::plan(model, pesc, rig.ranks.mesh(), o);
  const auto taken = rig.decoder->arenas();
  EXPECT_EQ(planned.size(), taken.size());
  for (size_t i = 0; i < planned.size(); ++i) EXPECT_EQ(planned[i].bytes, taken[i].bytes) << planned[i].name;
  out.activations = activations(taken);
  return out;
}

void expect_same(const Tensors& got, const Tensors& want, const char* what) {
  ASSERT_EQ(got.size(), want.size());
  for (const auto& [name, values] : want) EXPECT_TRUE(same_bits(got.at(name), values)) << what << " " << name;
}

void same_under_every_policy(const ModelConfig& model, const PescConfig& pesc, const Rows& rows,
                             Layout layout) {
  const MpiSession session;
  const auto world = test_world(session);
  SCOPED_TRACE(str_cat(world->size(), " ranks, tp ", layout.tp, ", ep ", layout.ep, ", headroom ",
                       layout.headroom, ", ", dtype_name(layout.compute)));
  const Outcome none = three_steps(*world, model, pesc, rows, layout);
  int64_t before = none.activations;
  for (const Recompute recompute : {Recompute::kCheap, Recompute::kBlock}) {
    SCOPED_TRACE(recompute == Recompute::kCheap ? "cheap" : "block");
    layout.recompute = recompute;
    const Outcome out = three_steps(*world, model, pesc, rows, layout);
    EXPECT_EQ(out.curve, none.curve);
    expect_same(out.gradients, none.gradients, "gradient of");
    expect_same(out.values, none.values, "value of");
    EXPECT_LT(out.activations, before);
    before = out.activations;
  }
}

std::vector<Layout> layouts(int ranks, bool experts) {
  std::vector<Layout> all{{.tp = 1, .ep = 1}};
  if (ranks == 1) all.push_back({.tp = 1, .ep = 1, .threads = 2});
  if (ranks >= 2) all.push_back({.tp = 2, .ep = 1});
  if (ranks == 4) all.push_back({.tp = 4, .ep = 1});
  if (!experts || ranks == 1) return all;
  for (const int tp : {1, 2}) {
    all.push_back({.tp = tp, .ep = ranks});
    all.push_back({.tp = tp, .ep = ranks, .headroom = 0.1});  // several exchange rounds
  }
  return all;
}

void on_every_layout(ModelConfig model, const PescConfig& pesc, const Rows& rows) {
  const MpiSession session;
  model.layers = 4;  // a first, a last, and between them neighbours of both
  for (const Layout& layout : layouts(session.world()->size(), pesc.mode == TrainMode::kPesc))
    same_under_every_policy(model, pesc, rows, layout);
}

TEST(Recompute, PescWithDropout) {
  on_every_layout(tiny_llama(), tiny_pesc(), five_rows(tiny_llama()));
}
TEST(Recompute, PescOfOddShapes) {
  on_every_layout(odd_llama(), odd_pesc(), five_rows(odd_llama()));
}
TEST(Recompute, PescWithoutLora) {
  PescConfig p = tiny_pesc();
  p.lora = {};
  on_every_layout(tiny_qwen2(), p, five_rows(tiny_qwen2()));
}
TEST(Recompute, NoDropout) {
  PescConfig p = tiny_pesc();
  p.lora.dropout = p.moe.dropout = 0;
  on_every_layout(tiny_llama(), p, five_rows(tiny_llama()));
}
TEST(Recompute, FewerRowsThanRanks) {
  on_every_layout(tiny_llama(), tiny_pesc(), some_rows(tiny_llama().vocab, {12}));
}
TEST(Recompute, LoraOnly) {
  PescConfig p = tiny_pesc();
  p.mode = TrainMode::kLora;
  on_every_layout(tiny_llama(), p, five_rows(tiny_llama()));
}
TEST(Recompute, AllParameters) {
  on_every_layout(tiny_qwen2(), full_tuning(), five_rows(tiny_qwen2()));
}

// Weights with LoRA's B beside them, and attention by the library where the build has it: sequences of one
// length, heads that it takes. A GPU's.
TEST(Recompute, InBf16) {
  if (!test_on_gpu()) return;
  const MpiSession session;
  ModelConfig wide = tiny_llama();
  wide.hidden = 256;
  wide.ffn = 512;
  wide.layers = 3;
  wide.head_dim = 64;
  PescConfig pesc = tiny_pesc();
  pesc.lora.rank = 8;
  pesc.moe.adapter_dim = 16;
  for (const TrainMode mode : {TrainMode::kPesc, TrainMode::kLora}) {
    pesc.mode = mode;
    for (const auto& lengths : {std::vector<int64_t>(8, 64), std::vector<int64_t>{40, 7, 64, 1, 30}})
      for (Layout layout : layouts(session.world()->size(), mode == TrainMode::kPesc)) {
        layout.compute = DType::kBF16;
        if (lengths.size() == 8 && layout.headroom < 1) layout.headroom = 0.2;
        same_under_every_policy(wide, pesc, some_rows(wide.vocab, lengths), layout);
      }
  }
}

}  // namespace
}  // namespace pesc
