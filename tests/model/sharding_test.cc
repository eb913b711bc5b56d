// ranks: 1 2 4
// Sharding is real: the bytes that each rank holds, reads and sends. Float32 on either device, so that they
// are the same.
#include <gtest/gtest.h>

#include <set>

#include "runtime/hf/config_json.h"
#include "runtime/hf/hf_folder.h"
#include "tests/model/rig.h"

namespace pesc {
namespace {

template <class Which>
int64_t bytes_of(const Decoder& d, const Which& which) {
  int64_t bytes = 0;
  for (const Parameter& p : d.parameters().all()) bytes += which(p) ? p.master.bytes() : 0;
  return bytes;
}

int64_t frozen_bytes(const Decoder& d) {
  return bytes_of(d, [](const Parameter& p) { return !p.trainable; });
}

// Frozen bytes without the norms, which are whole on every rank.
int64_t divided_bytes(const Decoder& d) {
  return bytes_of(
      d, [](const Parameter& p) { return !p.trainable && p.spec.name.find("norm") == std::string::npos; });
}

int64_t expert_bytes(const Decoder& d) {
  return bytes_of(d, [](const Parameter& p) { return p.trainable && p.group == ReplicaGroup::kExpert; });
}

std::vector<Layout> layouts(int ranks) {
  std::vector<Layout> all;
  for (const int tp : {1, 2, 4}) {
    for (const int ep : {1, 2, 4}) {
      if (ranks % tp == 0 && ranks % ep == 0) all.push_back({tp, ep});
    }
  }
  return all;
}

TEST(Sharding, ARankHoldsItsShareOfTheBytes) {
  const MpiSession session;
  const auto world = test_world(session);
  const auto own = alone(*world);
  ModelConfig model = tiny_llama();
  model.num_key_value_heads = 4;
  const Rows rows = five_rows(model);
  Rig whole(*own, model, tiny_pesc(), rows, {});
  const int64_t h = model.hidden_size;
  const int64_t linears = model.num_hidden_layers * (4 * h * h + 3 * h * model.intermediate_size);
  EXPECT_EQ(divided_bytes(*whole.decoder), 4 * (linears + 2 * model.vocab_size * h));
  EXPECT_EQ(expert_bytes(*whole.decoder), 4 * model.num_hidden_layers * 8 * 2 * h * 5);
  for (const Layout& l : layouts(world->size())) {
    Rig rig(*world, model, tiny_pesc(), rows, l);
    EXPECT_EQ(divided_bytes(*rig.decoder) * l.tp, divided_bytes(*whole.decoder)) << "tp " << l.tp;
    EXPECT_EQ(expert_bytes(*rig.decoder) * l.ep, expert_bytes(*whole.decoder)) << "ep " << l.ep;
  }
}

TEST(Sharding, ARankReadsItsShareOfTheBytes) {
  const MpiSession session;
  const auto world = test_world(session);
  const auto own = alone(*world);
  const std::string folder = PESC_SOURCE_DIR "/tests/goldens/mistral-top1";
  const ModelConfig model = read_model_config(folder);
  const Rows rows = five_rows(model);
  const auto read_by = [&](Communicator& group, const Layout& layout) {
    Rig rig(group, model, dense_only(), rows, layout);
    HfFolder source(folder);
    rig.decoder->parameters().initialise(rig.decoder->stream(), &source, 1, 0.02);
    EXPECT_EQ(source.bytes_read(), frozen_bytes(*rig.decoder));
    return source.bytes_read() - (frozen_bytes(*rig.decoder) - divided_bytes(*rig.decoder));
  };
  const int64_t whole = read_by(*own, {});
  for (const int tp : {1, 2, 4}) {
    if (world->size() % tp != 0) continue;
    EXPECT_EQ(read_by(*world, {.tp = tp}) * tp, whole) << "tp " << tp;
  }
}

TEST(Sharding, OneRankSendsNothing) {
  const MpiSession session;
  const auto world = test_world(session);
  const auto own = alone(*world);
  Rig rig(*own, tiny_llama(), tiny_pesc(), five_rows(tiny_llama()), {});
  rig.train();
  EXPECT_EQ(rig.ranks.bytes_sent(), 0);
}

TEST(Sharding, WithoutTensorAndExpertParallelismOnlyGradientsTravel) {
  const MpiSession session;
  const auto world = test_world(session);
  Rig rig(*world, tiny_llama(), tiny_pesc(), five_rows(tiny_llama()), {});
  rig.train();
  EXPECT_EQ(rig.ranks.groups().tp.bytes_sent(), 0);
  EXPECT_EQ(rig.ranks.groups().ep.bytes_sent(), 0);
  EXPECT_EQ(rig.ranks.bytes_sent() > 0, world->size() > 1);
}

// A token goes once to each other rank that holds one of its experts: its row, its weights, and in the
// backward its dy row; one row comes back each time, and the gradients of the weights.
TEST(Sharding, TheExchangeSendsWhatTheRoutingSays) {
  const MpiSession session;
  const auto world = test_world(session);
  const int ep = world->size();
  const ModelConfig model = tiny_llama();
  const PescConfig pesc = tiny_pesc();
  for (const int tp : {1, ep}) {
    Rig rig(*world, model, pesc, five_rows(model), {.tp = tp, .ep = ep});
    rig.train();
    ASSERT_EQ(rig.decoder->dispatch_rounds(), 1);
    const int64_t k = pesc.moe.num_experts_per_tok;
    const int64_t per_rank = pesc.moe.num_experts / ep;
    int64_t expected = 0;
    int64_t rows = 0;
    for (int64_t layer = 0; layer < model.num_hidden_layers; ++layer) {
      const std::vector<int32_t> chosen = rig.decoder->topk_indices(layer);
      std::vector<int64_t> sent(static_cast<size_t>(ep));
      for (size_t t = 0; t < chosen.size(); t += static_cast<size_t>(k)) {
        std::set<int64_t> homes;
        for (size_t j = t; j < t + static_cast<size_t>(k); ++j) homes.insert(chosen[j] / per_rank);
        for (const int64_t home : homes) ++sent[static_cast<size_t>(home)];
      }
      const std::vector<int64_t> table = world->host_all_gather(sent);
      for (int r = 0; r < ep; ++r) {
        if (r == world->rank()) continue;
        const int64_t to = table[static_cast<size_t>(world->rank() * ep + r)];
        const int64_t from = table[static_cast<size_t>(r * ep + world->rank())];
        expected += 4 * (to * (2 * model.hidden_size + k) + from * (2 * model.hidden_size + k));
        rows += to;
      }
    }
    EXPECT_EQ(rig.ranks.groups().ep.bytes_sent(), expected) << "tp " << tp;
    const std::vector<int64_t> all_rows = world->host_all_gather(std::span(&rows, 1));
    int64_t total = 0;
    for (const int64_t n : all_rows) total += n;
    EXPECT_EQ(total > 0, ep > 1);
  }
}

}  // namespace
}  // namespace pesc
