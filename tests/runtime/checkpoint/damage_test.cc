// Damage of every kind to the newest checkpoint: the previous one is taken, and it is said why.
#include <gtest/gtest.h>

#include <cstring>

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

class DamageTest : public ::testing::Test {
 protected:
  static constexpr Layout kLayout{2, 2, 2};

  void SetUp() override {
    files_.create_directory("run");
    save(10);
    save(20);
  }
  void save(int64_t step, uint64_t launch_id = 1) {
    const auto errors = run_ranks(kLayout.world, [&](Communicator& world) {
      Stream stream{Device{}};
      TrainableSet set(kLayout, world.rank());
      set.fill(static_cast<uint32_t>(step));
      CheckpointStore store(files_, "run", {});
      (void)store.find_newest(world);
      store.save(world, stream, state_at(step), set.tensors(), launch_id);
    });
    for (const std::string& error : errors) ASSERT_EQ(error, "");
  }
  Discovery find(int ranks = 1) {
    Discovery result;
    const auto errors = run_ranks(ranks, [&](Communicator& world) {
      CheckpointStore store(files_, "run", {});
      Discovery found = store.find_newest(world);
      const auto all = world.host_all_gather(found.damaged.empty() ? "" : found.damaged[0]);
      for (const std::string& one : all) EXPECT_EQ(one, all[0]);
      if (world.rank() == 0) result = std::move(found);
    });
    for (const std::string& error : errors) EXPECT_EQ(error, "");
    return result;
  }
  // After damage to step 20: step 10 is found, and the message has `reason` in it.
  void expect_walks_back(const std::string& reason, int ranks = 1) {
    const Discovery found = find(ranks);
    ASSERT_TRUE(found.checkpoint.has_value());
    EXPECT_EQ(found.checkpoint->state.step, 10);
    ASSERT_EQ(found.damaged.size(), 1U);
    EXPECT_NE(found.damaged[0].find("step-20"), std::string::npos) << found.damaged[0];
    EXPECT_NE(found.damaged[0].find(reason), std::string::npos) << found.damaged[0];
  }
  std::vector<std::byte>& bytes(const std::string& name) { return files_.contents("run/step-20/" + name); }

  MemoryFileSystem files_;
};

TEST_F(DamageTest, UndamagedIsTaken) {
  for (const int ranks : {1, 2, 5}) {
    const Discovery found = find(ranks);
    ASSERT_TRUE(found.checkpoint.has_value());
    EXPECT_EQ(found.checkpoint->state.step, 20);
    EXPECT_EQ(found.checkpoint->state.consumed_samples, 20 * 128);
    EXPECT_EQ(found.checkpoint->state.seed, 0xFEDCBA9876543210U);
    EXPECT_EQ(found.checkpoint->state.extra.at("loss_guard"), std::string("\0\xff\x01", 3));
    EXPECT_EQ(found.checkpoint->state.versions.at("openblas"), "0.3.21");
    EXPECT_EQ(found.checkpoint->state.config_text, "model { hidden: 64 }\n");
    EXPECT_TRUE(found.damaged.empty());
  }
}

TEST_F(DamageTest, EveryByteOfTheManifestCounts) {
  auto& manifest = bytes(kManifestName);
  for (std::byte& byte : manifest) {
    const std::byte was = byte;
    byte ^= std::byte{0x10};
    expect_walks_back(kManifestName);
    byte = was;
    if (HasFailure()) return;
  }
  EXPECT_EQ(find().checkpoint->state.step, 20);
}

TEST_F(DamageTest, AFlippedBitAnywhereInAShard) {
  for (const char* name : {"shard-00000.safetensors", "shard-00001.safetensors"}) {
    auto& shard = bytes(name);
    for (size_t i = 0; i < shard.size(); i += i < 16 || i + 100 > shard.size() ? 1 : 61) {
      shard[i] ^= std::byte{1};
      expect_walks_back(name, i == 0 ? 3 : 1);
      shard[i] ^= std::byte{1};
      if (HasFailure()) return;
    }
  }
  EXPECT_EQ(find().checkpoint->state.step, 20);
}

TEST_F(DamageTest, TruncatedGrownMissingOrSwapped) {
  for (const char* name : {kManifestName, "shard-00000.safetensors", "shard-00001.safetensors"}) {
    SCOPED_TRACE(name);
    const auto whole = bytes(name);
    for (const size_t size :
         {size_t{0}, size_t{1}, size_t{9}, whole.size() / 2, whole.size() - 1, whole.size() + 1}) {
      bytes(name).resize(size);
      expect_walks_back(name);
      bytes(name) = whole;
    }
    files_.remove(join_path("run/step-20", name));
    expect_walks_back("No such file", 2);
    files_.create_directory(join_path("run/step-20", name));
    expect_walks_back("Is a directory");
    files_.remove(join_path("run/step-20", name));
    (void)files_.create_file(join_path("run/step-20", name));
    bytes(name) = whole;
  }
  std::swap(bytes("shard-00000.safetensors"), bytes("shard-00001.safetensors"));
  expect_walks_back("shard-0000");
}

TEST_F(DamageTest, AnotherStepsDirectoryIsNotTakenForThisOne) {
  files_.rename("run/step-20", "run/step-30");
  const Discovery found = find();
  EXPECT_EQ(found.checkpoint->state.step, 10);
  ASSERT_EQ(found.damaged.size(), 1U);
  EXPECT_NE(found.damaged[0].find("is of step 20"), std::string::npos);
}

// A disk that does not answer says nothing about the checkpoint: no older one is taken for it, nothing is
// renamed, and the next attempt finds it.
TEST_F(DamageTest, AReadErrorIsNoDamage) {
  FaultyFileSystem faulty(files_);
  const auto attempt_with = [&](int failing_rank) {
    const auto before = files_.list("run");
    const auto errors = run_ranks(2, [&](Communicator& world) {
      CheckpointStore store(world.rank() == failing_rank ? static_cast<FileSystem&>(faulty) : files_, "run",
                            {});
      std::string message;
      try {
        const Discovery found = store.find_newest(world);
        ASSERT_TRUE(found.checkpoint.has_value());
        EXPECT_EQ(found.checkpoint->state.step, 20);
        EXPECT_TRUE(found.damaged.empty());
      } catch (const IoError& error) {
        message = error.what();
        EXPECT_NE(message.find("step-20"), std::string::npos) << message;
      }
      for (const std::string& one : world.host_all_gather(message)) EXPECT_EQ(one, message);
      throw DataError(message);  // for the test to see
    });
    EXPECT_EQ(files_.list("run"), before);
    return errors[0];
  };
  for (const int rank : {0, 1}) {
    faulty.heal();
    EXPECT_EQ(attempt_with(rank), "");
    const int64_t reads = faulty.reads();
    EXPECT_GT(reads, rank == 0 ? 3 : 1);
    for (const int error_number : {EIO, ESTALE, EACCES, EMFILE}) {
      for (int64_t k = 0; k < reads; ++k) {
        faulty.fail_read_at(k, error_number);
        const std::string error = attempt_with(rank);
        EXPECT_NE(error.find(std::strerror(error_number)), std::string::npos)
            << rank << ' ' << k << ' ' << error;
        EXPECT_NE(error.find("try again"), std::string::npos) << error;
      }
    }
  }
  faulty.heal();
  EXPECT_EQ(attempt_with(0), "");
  // Damage that another rank has seen for itself decides, whatever this one could not read.
  bytes("shard-00001.safetensors")[50] ^= std::byte{1};
  expect_walks_back("shard-00001", 2);
}

TEST_F(DamageTest, AllDamagedIsNotAFreshStart) {
  bytes(kManifestName).clear();
  files_.contents("run/step-10/manifest.pb").clear();
  const Discovery found = find(2);
  EXPECT_FALSE(found.checkpoint.has_value());
  EXPECT_EQ(found.damaged.size(), 2U);
  EXPECT_FALSE(found.none_there());
  files_.remove_all("run");
  EXPECT_TRUE(find(2).none_there());
  files_.create_directory("run");
  EXPECT_TRUE(find(2).none_there());
}

TEST_F(DamageTest, OtherNamesAreIgnored) {
  for (const char* name : {"step-99.tmp.3", "step-99.bad.1", "step-020", "step-", "step-x", "step--5",
                           "metrics.jsonl", "step-99999999999999999999"})
    files_.create_directory(join_path("run", name));
  const Discovery found = find();
  EXPECT_EQ(found.checkpoint->state.step, 20);
  EXPECT_TRUE(found.damaged.empty());
}

TEST_F(DamageTest, ADamagedOneInTheWayIsMovedAndKept) {
  bytes("shard-00000.safetensors")[50] ^= std::byte{1};
  save(20, 2);
  EXPECT_EQ(find().checkpoint->state.step, 20);
  EXPECT_EQ(files_.list("run"), (std::vector<std::string>{"step-10", "step-20", "step-20.bad.2"}));
}

TEST_F(DamageTest, ADamagedOneDoesNotCountAsKept) {
  bytes("shard-00000.safetensors")[50] ^= std::byte{1};
  save(15, 2);  // 20 stands there, but 10 and 15 are the two good ones
  EXPECT_EQ(files_.list("run"), (std::vector<std::string>{"step-10", "step-15", "step-20"}));
  save(17, 2);
  EXPECT_EQ(files_.list("run"), (std::vector<std::string>{"step-15", "step-17", "step-20"}));
}

}  // namespace
}  // namespace pesc
