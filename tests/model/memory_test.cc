// ranks: 1
// What a decoder announces is what it takes: the plan against the arenas, and the arenas against the resident
// memory of the process, on a model of more than 1 GB.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>

#include "tests/model/rig.h"

namespace pesc {
namespace {

[[maybe_unused]] int64_t resident_bytes() {
  std::ifstream in("/proc/self/statm");
  int64_t pages = 0;
  int64_t resident = 0;
  in >> pages >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

[[maybe_unused]] int64_t total(const std::vector<ArenaSize>& arenas) {
  int64_t bytes = 0;
  for (const ArenaSize& a : arenas) bytes += a.bytes;
  return bytes;
}

TEST(Memory, ThePlanIsWhatIsTaken) {
  const MpiSession session;
  const auto world = session.world();
  for (const PescConfig& pesc : {tiny_pesc(), full_tuning(), dense_only()}) {
    const ModelConfig model = tiny_llama();
    Ranks ranks(*world, 1, 1, model.num_key_value_heads);
    DecoderOptions o = options_of(model, pesc, ranks.mesh(), {.cache_slots = 3}, 100);
    const auto plan = Decoder::plan(model, pesc, ranks.mesh(), o);
    const Decoder decoder(model, pesc, ranks.mesh(), ranks.groups(), o);
    const auto arenas = decoder.arenas();
    ASSERT_EQ(plan.size(), arenas.size());
    for (size_t i = 0; i < plan.size(); ++i) {
      EXPECT_EQ(plan[i].name, arenas[i].name);
      EXPECT_EQ(plan[i].bytes, arenas[i].bytes) << plan[i].name;
    }
    o.purpose = Purpose::kInference;
    EXPECT_LT(total(Decoder::plan(model, pesc, ranks.mesh(), o)), total(plan));
  }
}

// The backward norms and rotates q and k again, so that norms of them keep nothing of a layer and take one
// buffer in the workspace.
TEST(Memory, NormsOfQAndKKeepNothingOfALayer) {
  const Mesh mesh(1, 0, 1, 1);
  constexpr int64_t kTokens = 100;
  const auto bytes_of = [&](const char* arena, Family family, int64_t layers) {
    ModelConfig model = tiny_llama();
    model.family = family;
    model.num_hidden_layers = layers;
    int64_t bytes = 0;
    for (const ArenaSize& a :
         Decoder::plan(model, tiny_pesc(), mesh, options_of(model, tiny_pesc(), mesh, {}, kTokens)))
      bytes += a.name == arena ? a.bytes : 0;
    EXPECT_GT(bytes, 0) << arena;
    return bytes;
  };
  for (const int64_t layers : {2, 9}) {
    EXPECT_EQ(bytes_of("activations", Family::kQwen3, layers),
              bytes_of("activations", Family::kLlama, layers));
    const int64_t taken =
        bytes_of("workspace", Family::kQwen3, layers) - bytes_of("workspace", Family::kLlama, layers);
    const int64_t least = kTokens * (8 * 8 + 6) * 4;  // q, k and v of heads of 8, and rstd of six heads
    EXPECT_GE(taken, least);
    EXPECT_LE(taken, least + 4096);
  }
}

// A rank of a large layout is planned with no ranks there, and holds less than the only rank.
TEST(Memory, PlansOfLargeLayoutsNeedNoRanks) {
  ModelConfig model = tiny_llama();
  model.hidden_size = 4096;
  model.intermediate_size = 11008;
  model.num_hidden_layers = 32;
  model.num_attention_heads = model.num_key_value_heads = 32;
  model.head_dim = 128;
  model.vocab_size = 32000;
  model.max_position_embeddings = 2048;
  const auto plan = [&](const Mesh& mesh, const Layout& layout) {
    return Decoder::plan(model, tiny_pesc(), mesh, options_of(model, tiny_pesc(), mesh, layout, 4096));
  };
  const auto one = plan(Mesh(1, 0, 1, 1), {});
  const auto eight = plan(Mesh(64, 5, 8, 8), {.tp = 8, .ep = 8});
  ASSERT_EQ(one.front().name, "weights");
  EXPECT_GT(one.front().bytes, int64_t{24} << 30);
  EXPECT_LT(eight.front().bytes, one.front().bytes / 7);
}

#ifndef __SANITIZE_ADDRESS__  // whose shadow memory is resident too
TEST(Memory, ResidentMemoryIsWhatTheArenasAnnounced) {
  const MpiSession session;
  const auto world = session.world();
  ModelConfig model = tiny_llama();
  model.vocab_size = 500;
  model.hidden_size = 128;
  model.intermediate_size = 352;
  model.num_attention_heads = 8;
  model.num_key_value_heads = 4;
  model.head_dim = 16;
  model.max_position_embeddings = 64;
  PescConfig pesc = tiny_pesc();
  pesc.lora.r = 8;
  pesc.moe.adapter_dim = 16;
  const Rows rows = some_rows(model.vocab_size, std::vector<int64_t>(950, 64));
  const int64_t before = resident_bytes();
  Rig rig(*world, model, pesc, rows, {.threads = 2});
  for (int64_t step = 1; step <= 2; ++step) {
    rig.train();
    optimizer_step(*rig.decoder, {}, 1e-3, step, rig.norm);
  }
  const int64_t grown = resident_bytes() - before;
  const int64_t announced = total(rig.decoder->arenas());
  std::printf("resident memory grew by %.3f GiB, %.3f of the %.3f GiB that the arenas announced\n",
              static_cast<double>(grown) / (1 << 30),
              static_cast<double>(grown) / static_cast<double>(announced),
              static_cast<double>(announced) / (1 << 30));
  EXPECT_GE(announced, int64_t{1} << 30);
  EXPECT_LE(static_cast<double>(grown), 1.1 * static_cast<double>(announced));
  // And the arenas are no mere promise.
  EXPECT_GE(static_cast<double>(grown), 0.8 * static_cast<double>(announced));
}
#endif

}  // namespace
}  // namespace pesc
