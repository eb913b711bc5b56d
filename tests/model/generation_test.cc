// ranks: 1 2 4
// Decoding with the KV cache gives the logits of the full forward, and the same tokens on every layout.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "runtime/generator.h"
#include "runtime/ranks.h"
#include "tests/model/rig.h"

namespace pesc {
namespace {

constexpr int64_t kSlots = 2;

SamplingOptions sampled(int64_t max_tokens, double top_p, uint64_t seed) {
  SamplingOptions o;
  o.max_tokens = max_tokens;
  o.temperature = 0.8;
  o.top_p = top_p;
  o.seed = seed;
  return o;
}
SamplingOptions greedy(int64_t max_tokens) {
  SamplingOptions o;
  o.max_tokens = max_tokens;
  return o;
}

GenerateOptions in_cache(const Rig& rig, const SamplingOptions& sampling) {
  return {.sampling = sampling,
          .cache_slots = kSlots,
          .cache_length = rig.decoder->model().max_position_embeddings};
}

// Every rank's own prompts, by the same rule as rows of a batch.
std::vector<Prompt> prompts_of(const Rows& rows, const Mesh& mesh) {
  std::vector<Prompt> mine;
  const Range range = split_range(static_cast<int64_t>(rows.size()), mesh.dp(), mesh.dp_rank());
  for (int64_t i = range.begin; i < range.end; ++i) mine.push_back({i, rows[static_cast<size_t>(i)]});
  return mine;
}

// The tokens generated for all prompts, in order, on every rank.
std::vector<std::vector<int32_t>> generate_all(Rig& rig, const SamplingOptions& options) {
  const Mesh& mesh = rig.ranks.mesh();
  const auto mine =
      generate(*rig.decoder, rig.ranks.world(), prompts_of(rig.rows, mesh), in_cache(rig, options)).answers;
  std::string bytes;
  for (const auto& answer : mine) {
    bytes.push_back(static_cast<char>(answer.size()));
    for (const int32_t token : answer) bytes.push_back(static_cast<char>(token));
  }
  if (mesh.tp_rank() != 0) bytes.clear();
  std::vector<std::vector<int32_t>> all;
  for (const std::string& part : rig.ranks.world().host_all_gather(bytes)) {
    for (size_t at = 0; at < part.size();) {
      const auto n = static_cast<size_t>(part[at++]);
      all.emplace_back(part.begin() + static_cast<int64_t>(at), part.begin() + static_cast<int64_t>(at + n));
      at += n;
    }
  }
  return all;
}

void same_tokens(const ModelConfig& model, const PescConfig& pesc, const Rows& rows,
                 const SamplingOptions& options) {
  const MpiSession session;
  const auto world = test_world(session);
  const auto own = alone(*world);
  Rig reference(*own, model, pesc, rows, {.cache_slots = kSlots});
  const auto want = generate_all(reference, options);
  ASSERT_EQ(want.size(), rows.size());
  for (const auto& answer : want) EXPECT_EQ(static_cast<int64_t>(answer.size()), options.max_tokens);
  for (const int tp : {1, 2, 4}) {
    for (const int ep : {1, 2, 4}) {
      if (world->size() % tp != 0 || world->size() % ep != 0) continue;
      if (ep > 1 && pesc.mode != TrainMode::kPesc) continue;
      Rig rig(*world, model, pesc, rows,
              {.tp = tp, .ep = ep, .cache_slots = kSlots, .purpose = Purpose::kInference});
      EXPECT_EQ(generate_all(rig, options), want) << "tp " << tp << ", ep " << ep;
      if (ep == 1 || ep < world->size()) continue;
      Rig gathering(*world, model, pesc, rows,
                    {.tp = tp,
                     .ep = ep,
                     .cache_slots = kSlots,
                     .purpose = Purpose::kInference,
                     .exchange = ExpertExchange::kWeights});
      EXPECT_EQ(generate_all(gathering, options), want) << "weights, tp " << tp << ", ep " << ep;
    }
  }
}

TEST(Generation, CacheGivesTheLogitsOfTheFullForward) {
  const MpiSession session;
  const auto world = test_world(session);
  const int n = world->size();
  for (const ModelConfig& model : {tiny_llama(), odd_llama(), tiny_qwen2(), tiny_qwen3(), tiny_smollm3()}) {
    const Rows rows = some_rows(model.vocab_size, {9, 5});
    const Layout layout{.tp = n == 4 ? 2 : n, .ep = n, .cache_slots = 2};
    Rig rig(*world, model, tiny_pesc(), rows, layout);
    const std::vector<float> want = rig.all_logits(ForwardMode::kEval);
    std::vector<float> got(want.size());
    // Both rows in one batch on every dp rank: their first tokens in pieces of 2 and 1, then one at a time.
    std::vector<int64_t> done{0, 0};
    while (done[0] < 9 || done[1] < 5) {
      HostBatch b;
      std::vector<int32_t> index;
      std::vector<int64_t> place;
      for (size_t i = 0; i < 2; ++i) {
        const auto length = static_cast<int64_t>(rows[i].size());
        const int64_t count = std::min(length - done[i], int64_t{done[i] == 0 && i == 0 ? 2 : 1});
        if (count == 0) continue;
        for (int64_t t = done[i]; t < done[i] + count; ++t) {
          b.tokens.push_back(rows[i][static_cast<size_t>(t)]);
          b.positions.push_back(static_cast<int32_t>(t));
          b.samples.push_back(static_cast<int64_t>(i));
          index.push_back(static_cast<int32_t>(index.size()));
          place.push_back((i == 0 ? 0 : 9) + t);
        }
        b.starts.push_back(static_cast<int32_t>(b.tokens.size()));
        b.slots.push_back(static_cast<int32_t>(1 - i));
        b.past.push_back(static_cast<int32_t>(done[i]));
        done[i] += count;
      }
      rig.decoder->forward(b, {.kind = ForwardMode::kEval});
      const std::vector<float> logits = rig.decoder->logits(index);
      for (size_t i = 0; i < place.size(); ++i)
        std::copy_n(logits.begin() + static_cast<int64_t>(i) * model.vocab_size, model.vocab_size,
                    got.begin() + place[i] * model.vocab_size);
    }
    EXPECT_LT(relative_error(got, want), 1e-5);
  }
}

TEST(Generation, GreedyIsTheSameOnEveryLayout) {
  same_tokens(tiny_llama(), tiny_pesc(), five_rows(tiny_llama()), greedy(12));
  same_tokens(odd_llama(), odd_pesc(), five_rows(odd_llama()), greedy(12));
}

TEST(Generation, SamplingIsTheSameOnEveryLayout) {
  const SamplingOptions options = sampled(12, 0.9, 77);
  same_tokens(tiny_llama(), tiny_pesc(), five_rows(tiny_llama()), options);
  same_tokens(tiny_llama(), dense_only(), five_rows(tiny_llama()), options);
}

TEST(Generation, FewerPromptsThanRanks) {
  same_tokens(tiny_llama(), tiny_pesc(), some_rows(tiny_llama().vocab_size, {4}), greedy(6));
}

TEST(Generation, StopsAtEndOfTextAndAtTheEndOfTheCache) {
  const MpiSession session;
  const auto world = test_world(session);
  const Rows rows = five_rows(tiny_llama());
  Rig rig(*world, tiny_llama(), tiny_pesc(), rows, {.ep = world->size(), .cache_slots = kSlots});
  SamplingOptions options = sampled(100, 1, 3);
  const auto unstopped = generate_all(rig, options);
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(rows[i].size() + unstopped[i].size(),
              static_cast<size_t>(tiny_llama().max_position_embeddings));
  }
  options.stop = {unstopped[0][4]};
  const auto stopped = generate_all(rig, options);
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto end = std::find(unstopped[i].begin(), unstopped[i].end(), unstopped[0][4]);
    EXPECT_EQ(stopped[i], std::vector<int32_t>(unstopped[i].begin(), end)) << i;
  }
  EXPECT_LE(stopped[0].size(), 4U);
}

// What is printed while it comes is the answer, whatever token ended it.
TEST(Generation, TheCallbackGetsTheAnswerAndNotTheTokenThatStopsIt) {
  const MpiSession session;
  const auto world = test_world(session);
  Rig rig(*world, tiny_llama(), tiny_pesc(), five_rows(tiny_llama()),
          {.ep = world->size(), .cache_slots = kSlots});
  SamplingOptions options = sampled(100, 1, 3);
  for (int64_t id = 0; id < tiny_llama().vocab_size; id += 3) options.stop.push_back(id);
  std::map<int64_t, std::vector<int32_t>> told;
  const auto prompts = prompts_of(rig.rows, rig.ranks.mesh());
  GenerateOptions how = in_cache(rig, options);
  how.on_token = [&](const Prompt& prompt, int32_t token) { told[prompt.index].push_back(token); };
  const auto answers = generate(*rig.decoder, rig.ranks.world(), prompts, how).answers;
  for (size_t i = 0; i < prompts.size(); ++i) EXPECT_EQ(told[prompts[i].index], answers[i]);
}

TEST(Generation, RowsOfThePaddingAreNeverDrawn) {
  const MpiSession session;
  const auto world = test_world(session);
  Rig rig(*world, tiny_llama(), tiny_pesc(), five_rows(tiny_llama()),
          {.ep = world->size(), .cache_slots = kSlots});
  constexpr int64_t kPieces = 5;  // of a vocabulary that has far more rows
  const auto most = [&](const SamplingOptions& options) {
    int32_t id = 0;
    for (const auto& answer : generate_all(rig, options)) {
      for (const int32_t token : answer) id = std::max(id, token);
    }
    return id;
  };
  for (SamplingOptions options : {greedy(30), sampled(30, 1, 3), sampled(30, 0.9, 4)}) {
    EXPECT_GE(most(options), kPieces);
    options.pieces = kPieces;
    EXPECT_LT(most(options), kPieces);
  }
  // But for those that are said to end an answer.
  SamplingOptions options = sampled(30, 1, 3);
  options.pieces = kPieces;
  for (int64_t id = kPieces; id < tiny_llama().vocab_size; ++id) options.stop.push_back(id);
  size_t tokens = 0;
  for (const auto& answer : generate_all(rig, options)) tokens += answer.size();
  EXPECT_LT(tokens, 5U * 30U);
  EXPECT_LT(most(options), kPieces);
}

TEST(Generation, TellsHowManyAnswersTheCacheCut) {
  const MpiSession session;
  const auto world = test_world(session);
  const Rows rows = five_rows(tiny_llama());
  Rig rig(*world, tiny_llama(), tiny_pesc(), rows, {.cache_slots = kSlots});
  const auto mine = prompts_of(rows, rig.ranks.mesh());
  const auto cut_of = [&](int64_t max_tokens) {
    return generate(*rig.decoder, rig.ranks.world(), mine, in_cache(rig, greedy(max_tokens))).cut;
  };
  EXPECT_EQ(cut_of(1), 0);
  EXPECT_EQ(cut_of(1000), static_cast<int64_t>(mine.size()));
}

// A NaN in the last norm makes every logit of every prompt one: greedy or not, all ranks end with the same
// error.
TEST(Generation, LogitsThatAreNotFiniteEndItOnEveryRank) {
  const MpiSession session;
  const auto world = test_world(session);
  for (const Rows& rows : {five_rows(tiny_llama()), some_rows(tiny_llama().vocab_size, {4})}) {
    Rig rig(*world, tiny_llama(), tiny_pesc(), rows, {.ep = world->size(), .cache_slots = kSlots});
    bool poisoned = false;
    for (const Parameter& p : rig.decoder->parameters().all()) {
      if (p.spec.name != "model.norm.weight") continue;
      const std::vector<float> values(static_cast<size_t>(p.spec.size()), NAN);
      copy_from_host(rig.decoder->stream(), values.data(), p.master);
      poisoned = true;
    }
    ASSERT_TRUE(poisoned);
    for (const SamplingOptions& options : {greedy(3), sampled(3, 0.9, 5)}) {
      try {
        (void)generate_all(rig, options);
        ADD_FAILURE() << "nothing was refused";
      } catch (const AgreedError& e) {
        EXPECT_EQ(e.code(), ExitCode::kInternal);
        EXPECT_NE(std::string(e.what()).find("at token 1 of its answer"), std::string::npos) << e.what();
      }
    }
  }
}

}  // namespace
}  // namespace pesc
