// Two checkpoints compared, across layouts, and what the manifest alone says.
#include "runtime/checkpoint/comparison.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include "runtime/checkpoint/manifest.h"
#include "runtime/checkpoint/store.h"
#include "tests/runtime/checkpoint/thread_communicator.h"
#include "tests/runtime/checkpoint/trainable_set.h"
#include "tests/runtime/filesystem/faulty_filesystem.h"

namespace pesc {
namespace {

using testing::FaultyFileSystem;
using testing::Layout;
using testing::MemoryFileSystem;
using testing::run_ranks;
using testing::state_at;
using testing::TrainableSet;
using Verdict = TensorComparison::Verdict;

class ComparisonTest : public ::testing::Test {
 protected:
  // Every element is its column + 1, and what `change` makes of that.
  void save(const std::string& run, Layout layout, const std::function<void(TrainableTensor&)>& change = {}) {
    memory_.create_directory(run);
    const auto errors = run_ranks(layout.world, [&](Communicator& world) {
      Stream stream{Device{}};
      TrainableSet set(layout, world.rank());
      for (TrainableTensor& t : set.tensors()) {
        for (const Tensor& part : {t.master, t.exp_avg, t.exp_avg_sq})
          for (int64_t r = 0; r < part.rows; ++r)
            for (int64_t c = 0; c < part.cols; ++c)
              part.f32()[r * part.ld + c] = static_cast<float>(t.spec.col + c + 1);
        if (change) change(t);
      }
      CheckpointState state = state_at(5);
      state.tp = layout.tp;
      state.ep = layout.ep;
      CheckpointStore store(memory_, run, {});
      store.save(world, stream, state, set.tensors(), 1);
    });
    for (const std::string& error : errors) ASSERT_EQ(error, "");
  }
  std::vector<TensorComparison> compare(const std::string& a, const std::string& b,
                                        int64_t band_bytes = int64_t{16} << 20) {
    std::vector<TensorComparison> all;
    const auto errors = run_ranks(1, [&](Communicator& world) {
      Stream stream{Device{}};
      const auto first = open_checkpoint(memory_, world, join_path(a, "step-5"));
      const auto second = open_checkpoint(memory_, world, join_path(b, "step-5"));
      all = compare_checkpoints(memory_, stream, first, second, band_bytes);
    });
    EXPECT_EQ(errors[0], "");
    return all;
  }
  // The comparisons that are not kEqual.
  static std::vector<TensorComparison> unequal(const std::vector<TensorComparison>& all) {
    std::vector<TensorComparison> some;
    for (const TensorComparison& c : all)
      if (c.verdict != Verdict::kEqual) some.push_back(c);
    return some;
  }
  // The element (row, col) of the whole tensor, where this piece holds it.
  // Writes `value` over the only element of the run's checkpoint that has the bits of `instead`: no run saves
  // what is not finite, but older ones have.
  void plant(const std::string& run, float instead, float value) {
    const std::string folder = join_path(run, "step-5");
    auto& shard = memory_.contents(join_path(folder, shard_name(0)));
    const auto wanted = std::as_bytes(std::span(&instead, 1));
    const auto at = std::search(shard.begin(), shard.end(), wanted.begin(), wanted.end());
    ASSERT_NE(at, shard.end());
    std::memcpy(&*at, &value, sizeof(value));
    auto& bytes = memory_.contents(join_path(folder, kManifestName));
    proto::Manifest manifest =
        parse_manifest({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, "the manifest");
    manifest.clear_checksum();
    ASSERT_EQ(manifest.files(0).block_checksums_size(), 1);
    manifest.mutable_files(0)->set_block_checksums(0, XXH3_64bits(shard.data(), shard.size()));
    const std::string text = serialize_manifest(manifest);
    bytes.assign(std::as_bytes(std::span(text)).begin(), std::as_bytes(std::span(text)).end());
  }
  static float* element(const ShardSpec& spec, const Tensor& t, int64_t row, int64_t col) {
    if (row < spec.row || row >= spec.row + spec.rows || col < spec.col || col >= spec.col + spec.cols)
      return nullptr;
    return t.f32() + (row - spec.row) * t.ld + col - spec.col;
  }

  MemoryFileSystem memory_;
};

TEST_F(ComparisonTest, EqualAcrossLayoutsForAnySizeOfBand) {
  save("a", {4, 2, 4});
  save("b", {1, 1, 1});
  const auto all = compare("a", "b");
  EXPECT_EQ(all.size(), 3U * (8 + 8));
  std::set<std::pair<std::string, std::string>> keys;
  for (const TensorComparison& c : all) {
    EXPECT_EQ(c.verdict, Verdict::kEqual) << c.name << ' ' << c.kind;
    keys.emplace(c.name, c.kind);
  }
  EXPECT_EQ(keys.size(), all.size());
  EXPECT_TRUE(keys.contains({"experts.7.down", "exp_avg_sq"}));
  for (const int64_t band : {1, 4, 20, 44, 300})
    EXPECT_TRUE(unequal(compare("a", "b", band)).empty()) << band;
}

TEST_F(ComparisonTest, OneElementOfOneKindIsFoundWithItsSize) {
  save("a", {1, 1, 1});
  // "grid" is [6, 10]: cut by rows and by columns on four ranks.
  save("b", {4, 2, 4}, [](TrainableTensor& t) {
    if (t.spec.name != "grid") return;
    if (float* x = element(t.spec, t.exp_avg, 5, 9)) *x = 10.5F;
    if (float* x = element(t.spec, t.exp_avg, 0, 0)) *x = 1.25F;
  });
  for (const int64_t band : {int64_t{4}, int64_t{12}, int64_t{80}, int64_t{1} << 20}) {
    const auto some = unequal(compare("a", "b", band));
    ASSERT_EQ(some.size(), 1U) << band;
    EXPECT_EQ(some[0].name, "grid");
    EXPECT_EQ(some[0].kind, "exp_avg");
    EXPECT_EQ(some[0].verdict, Verdict::kDifferent);
    EXPECT_EQ(some[0].rows, 6);
    EXPECT_EQ(some[0].cols, 10);
    EXPECT_EQ(some[0].differing, 2);
    EXPECT_EQ(some[0].max_absolute, 0.5);
    EXPECT_EQ(some[0].max_relative, 0.5 / 10.5);  // of the second checkpoint's largest
  }
}

TEST_F(ComparisonTest, ZerosAndWhatIsNotFinite) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const auto with = [](const char* name, float x) {
    return [name, x](TrainableTensor& t) {
      if (t.spec.name == name) t.master.f32()[0] = x;
    };
  };
  save("zero", {1, 1, 1}, with("norm", 0.0F));
  save("minus", {1, 1, 1}, with("norm", -0.0F));
  save("nan", {1, 1, 1}, with("norm", 12345.75F));
  plant("nan", 12345.75F, NAN);
  save("inf", {1, 1, 1}, with("norm", 12345.75F));
  plant("inf", 12345.75F, kInf);
  const auto signs = unequal(compare("zero", "minus"));
  ASSERT_EQ(signs.size(), 1U);
  EXPECT_EQ(signs[0].differing, 1);
  EXPECT_EQ(signs[0].max_absolute, 0);
  EXPECT_EQ(signs[0].max_relative, 0);
  for (const auto& [a, b] : {std::pair("zero", "nan"), std::pair("nan", "zero"), std::pair("inf", "nan"),
                             std::pair("zero", "inf")}) {
    const auto some = unequal(compare(a, b));
    ASSERT_EQ(some.size(), 1U) << a << b;
    EXPECT_EQ(some[0].max_absolute, kInf) << a << b;
    EXPECT_EQ(some[0].max_relative, kInf) << a << b;
  }
  EXPECT_TRUE(unequal(compare("nan", "nan")).empty());
  EXPECT_TRUE(unequal(compare("inf", "inf")).empty());
}

TEST_F(ComparisonTest, WhatIsNotFiniteIsComparedButNotLoaded) {
  save("nan", {1, 1, 1}, [](TrainableTensor& t) {
    if (t.spec.name == "grid") t.exp_avg_sq.f32()[t.exp_avg_sq.ld + 2] = 12345.75F;
  });
  plant("nan", 12345.75F, NAN);
  const auto errors = run_ranks(1, [&](Communicator& world) {
    Stream stream{Device{}};
    TrainableSet set({1, 1, 1}, 0);
    load_checkpoint(memory_, open_checkpoint(memory_, world, "nan/step-5"), stream, set.tensors());
  });
  EXPECT_NE(errors[0].find("'grid' (exp_avg_sq) holds nan at row 1, column 2"), std::string::npos)
      << errors[0];
  EXPECT_NE(errors[0].find("nan/step-5"), std::string::npos) << errors[0];
}

TEST_F(ComparisonTest, TensorsThatOnlyOneHasAndOtherShapes) {
  save("a", {1, 1, 1}, [](TrainableTensor& t) {
    if (t.spec.name == "norm") t.exp_avg = {};
    if (t.spec.name == "router") t.spec.name = "router_of_a";
    if (t.spec.name == "few") {
      t.spec.global_rows = t.spec.rows = 1;
      for (Tensor* part : {&t.master, &t.exp_avg, &t.exp_avg_sq}) *part = part->row_range(0, 1);
    }
  });
  save("b", {1, 1, 1});
  std::map<std::pair<std::string, std::string>, Verdict> seen;
  for (const TensorComparison& c : unequal(compare("a", "b"))) {
    seen[{c.name, c.kind}] = c.verdict;
    if (c.name == "few") {
      EXPECT_EQ(c.rows, 1);
      EXPECT_EQ(c.second_rows, 2);
      EXPECT_EQ(c.second_cols, 3);
    }
  }
  EXPECT_EQ(seen.size(), 10U);
  EXPECT_EQ((seen[{"norm", "exp_avg"}]), Verdict::kOnlyInSecond);
  EXPECT_EQ((seen[{"router_of_a", "param"}]), Verdict::kOnlyInFirst);
  EXPECT_EQ((seen[{"router", "param"}]), Verdict::kOnlyInSecond);
  EXPECT_EQ((seen[{"few", "exp_avg_sq"}]), Verdict::kOtherShape);
}

TEST_F(ComparisonTest, APeekReadsTheManifestAndSizesOnly) {
  save("a", {4, 2, 4});
  FaultyFileSystem counting(memory_);
  const LoadedCheckpoint peeked = peek_checkpoint(counting, "a/step-5");
  EXPECT_EQ(peeked.state.step, 5);
  EXPECT_EQ(peeked.world, 4);
  EXPECT_EQ(peeked.state.tp, 2);
  EXPECT_GT(peeked.bytes, 0);
  EXPECT_EQ(counting.bytes_read(), static_cast<int64_t>(memory_.contents("a/step-5/manifest.pb").size()));
  // A flipped bit goes unseen; a file that is too short does not.
  auto& shard = memory_.contents("a/step-5/shard-00001.safetensors");
  shard.back() ^= std::byte{1};
  EXPECT_EQ(peek_checkpoint(memory_, "a/step-5").bytes, peeked.bytes);
  shard.pop_back();
  try {
    (void)peek_checkpoint(memory_, "a/step-5");
    ADD_FAILURE() << "a truncated shard";
  } catch (const DataError& error) {
    EXPECT_NE(std::string(error.what()).find("checkpoint 'a/step-5': shard-00001.safetensors has "),
              std::string::npos)
        << error.what();
  }
  memory_.remove("a/step-5/shard-00001.safetensors");
  EXPECT_THROW((void)peek_checkpoint(memory_, "a/step-5"), DataError);
  memory_.contents("a/step-5/manifest.pb")[3] ^= std::byte{1};
  EXPECT_THROW((void)peek_checkpoint(memory_, "a/step-5"), DataError);
  EXPECT_THROW((void)peek_checkpoint(memory_, "a/step-6"), DataError);
}

}  // namespace
}  // namespace pesc
