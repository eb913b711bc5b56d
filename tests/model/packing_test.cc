// ranks: 1 2 4
// Packed rows compute what their conversations compute by themselves, dropout on: on one rank, in one order of
// the tokens, bit for bit; on other layouts, where the ranks hold packed rows or single conversations, within
// rounding; and also where each conversation has a batch of its own.
//
// GEMMs of a batch of one conversation have other shapes, and so other kernels than those of packed rows. How
// much rounding changes a gradient depends on these weights (the sums of softmax's gradient cancel) and on the
// kernels that OpenBLAS has for the processor and for each shape, so there is no number for all machines. It
// is found by the rule of tests/model/dropout_reference_test.cc: the same step runs sixteen times with every
// weight moved up or down to the next float32. That is two to four times what one rounding moves a term of a
// GEMM by, and it gives all roundings behind it other signs. Another order of the sums is one more draw, of
// smaller moves; the bound is kMargin times the furthest of the sixteen.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "runtime/data/row_stream.h"
#include "tests/model/rig.h"
#include "tests/runtime/data/test_tokenizers.h"

namespace pesc {
namespace {

constexpr int64_t kLength = 26;
constexpr int64_t kRows = 9;  // of the micro-batch
constexpr uint64_t kSeed = 3;
constexpr int kRoundedRuns = 16;
constexpr double kMargin = 2;

ModelConfig byte_llama() {
  ModelConfig m = tiny_llama();
  m.vocab_size = 260;
  return m;
}

// 40 texts of 4 to 24 tokens.
class PackedBatch {
 public:
  PackedBatch() {
    std::string lines;
    for (int i = 0; i < 40; ++i) {
      lines += R"({"corpus": ")";
      for (int c = 0; c < i * 8 % 21 + 2; ++c) lines += static_cast<char>('a' + (i * 5 + c * c) % 26);
      lines += "\"}\n";
    }
    DatasetOptions options;
    options.max_seq_length = kLength;
    data_ = std::make_unique<Dataset>(std::vector<DatasetFile>{{folder_.write("d.jsonl", lines), "", 1}},
                                      ByteTokenizer(), options);
    stream_ = std::make_unique<RowStream>(*data_, kSeed, Packing::kBestFit, kLength);
    const HostBatch all = rows({0, kRows});
    for (size_t i = 0; i + 1 < all.starts.size(); ++i) {
      conversations_.push_back(all.samples[static_cast<size_t>(all.starts[i])]);
      tokens_.emplace_back(all.tokens.begin() + all.starts[i], all.tokens.begin() + all.starts[i + 1]);
    }
  }
  // Packed rows.
  [[nodiscard]] HostBatch rows(const Range& range) { return stream_->batch(range).host; }
  // Conversations, in the order that they have in the packed rows, as rows without packing are.
  [[nodiscard]] HostBatch conversations(const Range& range) const {
    const Sampler sampler(data_->epoch_size(), kSeed);
    LocalBatch batch;
    for (int64_t i = range.begin; i < range.end; ++i)
      add_conversation(*data_, sampler, conversations_[static_cast<size_t>(i)], batch);
    return batch.host;
  }
  [[nodiscard]] int64_t count() const { return std::ssize(conversations_); }
  [[nodiscard]] const Rows& tokens() const { return tokens_; }  // of each conversation

 private:
  TokenizerFolder folder_;
  std::unique_ptr<Dataset> data_;
  std::unique_ptr<RowStream> stream_;
  std::vector<int64_t> conversations_;
  Rows tokens_;
};

struct Outcome {
  double loss = 0, norm = 0;
  Tensors gradients;
};

Outcome train(Communicator& world, const PackedBatch& data, const Layout& layout, const auto& batch_of) {
  Rig rig(world, byte_llama(), tiny_pesc(), data.tokens(), layout);
  rig.batch = batch_of(rig.ranks.mesh());
  Outcome out;
  out.loss = rig.train();
  out.norm = rig.norm;
  out.gradients = rig.gradients();
  return out;
}

void expect_close(const Outcome& got, const Outcome& want, double of_gradients) {
  EXPECT_NEAR(got.loss / want.loss, 1.0, 1e-6);
  ASSERT_EQ(got.gradients.size(), want.gradients.size());
  for (const auto& [name, values] : want.gradients)
    EXPECT_LT(relative_error(got.gradients.at(name), values), of_gradients) << name;
}

// Every weight of float32 becomes the next one above or below; which of the two depends on its name, its place
// and `run`.
void move_weights(Decoder& decoder, int run) {
  for (const Parameter& p : decoder.parameters().all()) {
    const ShardSpec& s = p.spec;
    std::vector<float> host;
    for (int64_t r = s.row; r < s.row + s.rows; ++r) {
      for (int64_t c = s.col; c < s.col + s.cols; ++c) {
        const double up = noise(str_cat(s.name, " ", run), static_cast<uint64_t>(r * s.global_cols + c));
        host.push_back(std::nextafter(weight_noise(s, r, c), up > 0 ? INFINITY : -INFINITY));
      }
    }
    const FrozenLinear to = p.held.out > 0 ? p.held : FrozenLinear::of(p.master);
    ASSERT_LT(FrozenWriter(decoder.stream(), to).write(0, s.rows, host.data()), 0) << s.name;
  }
  decoder.parameters().refresh_compute_weights(decoder.stream());
}

// How far rounding can take a gradient of this step from `gradients`, which it had: see the top of the file. The
// weights are afterwards as they were.
double rounding_bound(Rig& rig, const Tensors& gradients) {
  double furthest = 0;
  for (int run = 1; run <= kRoundedRuns; ++run) {
    move_weights(*rig.decoder, run);
    rig.train();
    const Tensors moved = rig.gradients();
    for (const auto& [name, values] : gradients)
      furthest = std::max(furthest, relative_error(moved.at(name), values));
  }
  randomise(*rig.decoder);
  const double bound = kMargin * furthest;
  std::printf("rounding takes a gradient %.1e away, bound %.1e\n", furthest, bound);
  // A token that another conversation saw would change the gradients by far more.
  EXPECT_LT(bound, 1e-3);
  return bound;
}

TEST(PackedRowsOfAModel, OnOneRankAreTheirConversationsBitForBit) {
  const MpiSession session;
  const auto world = test_world(session);
  const auto own = alone(*world);
  PackedBatch data;
  EXPECT_GT(data.count(), kRows + kRows / 2);  // or there would be little to show
  const Outcome packed = train(*own, data, {}, [&](const Mesh&) { return data.rows({0, kRows}); });
  const Outcome apart = train(*own, data, {}, [&](const Mesh&) {
    return data.conversations({0, data.count()});
  });
  EXPECT_GT(packed.norm, 0);
  EXPECT_EQ(packed.loss, apart.loss);
  EXPECT_EQ(packed.norm, apart.norm);
  ASSERT_EQ(packed.gradients.size(), apart.gradients.size());
  for (const auto& [name, values] : packed.gradients)
    EXPECT_TRUE(same_bits(values, apart.gradients.at(name))) << name;
}

TEST(PackedRowsOfAModel, OnEveryLayoutAreTheirConversations) {
  const MpiSession session;
  const auto world = test_world(session);
  const auto own = alone(*world);
  PackedBatch data;
  const Outcome want = train(*own, data, {}, [&](const Mesh&) {
    return data.conversations({0, data.count()});
  });
  for (const int tp : {1, 2, 4}) {
    for (const int ep : {1, 2, 4}) {
      if (world->size() % tp != 0 || world->size() % ep != 0) continue;
      SCOPED_TRACE(str_cat(world->size(), " ranks, tp ", tp, ", ep ", ep));
      const Layout layout{.tp = tp, .ep = ep};
      const Outcome packed = train(*world, data, layout, [&](const Mesh& mesh) {
        const BatchPlan plan{kRows, kRows, mesh.dp()};
        return data.rows(plan.local_range(0, 0, mesh.dp_rank()));
      });
      const Outcome apart = train(*world, data, layout, [&](const Mesh& mesh) {
        return data.conversations(split_range(data.count(), mesh.dp(), mesh.dp_rank()));
      });
      expect_close(packed, apart, 1e-5);
      // Another layout sums in another order, packed or not: the bound of layouts_test.
      expect_close(packed, want, 1e-4);
    }
  }
}

// Without the aux loss, which is of a micro-batch, packing changes nothing: no conversation sees another.
TEST(PackedRowsOfAModel, DoNotLetConversationsSeeEachOther) {
  const MpiSession session;
  const auto world = test_world(session);
  const auto own = alone(*world);
  PackedBatch data;
  Rig rig(*own, byte_llama(), tiny_pesc(), data.tokens(), {});
  rig.aux_loss_coef = 0;
  rig.batch = data.rows({0, kRows});
  Outcome packed;
  packed.loss = rig.train();
  packed.gradients = rig.gradients();
  const double bound = rounding_bound(rig, packed.gradients);

  Outcome apart;
  Decoder& decoder = *rig.decoder;
  decoder.zero_gradients();
  for (int64_t i = 0; i < data.count(); ++i) {
    const HostBatch one = data.conversations({i, i + 1});
    decoder.forward(one, {.kind = ForwardMode::kTrain, .seed = 5, .step = rig.step});
    decoder.compute_aux_loss(one.size(), 0);
    decoder.loss(HeadMode::kLossAndGradient, static_cast<float>(rig.ce_scale));
    decoder.backward(Decoder::LayerDone{});
  }
  apart.loss = rig.ce_scale * decoder.take_loss_sum();
  apart.gradients = rig.gradients();
  expect_close(packed, apart, bound);
}

}  // namespace
}  // namespace pesc
