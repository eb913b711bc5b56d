// ranks: 1 2 4
// Checkpoints over MPI on real files: save, find, load, prune; a full disk on one rank.
#include "runtime/checkpoint/store.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "parallel/mpi_session.h"
#include "tests/runtime/checkpoint/trainable_set.h"
#include "tests/runtime/filesystem/faulty_filesystem.h"

namespace pesc {
namespace {

using testing::FaultyFileSystem;
using testing::Layout;
using testing::state_at;
using testing::TrainableSet;

class StoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    world_ = session_.world();
    std::string dir;
    if (world_->rank() == 0) {
      dir = (std::filesystem::temp_directory_path() / "pesc-store-XXXXXX").string();
      ASSERT_NE(::mkdtemp(dir.data()), nullptr);
    }
    run_ = world_->host_all_gather(dir)[0];
  }
  void TearDown() override {
    world_->barrier();
    if (world_->rank() == 0) std::filesystem::remove_all(run_);
  }
  [[nodiscard]] Layout layout() const {
    return {world_->size(), std::min(2, world_->size()), world_->size()};
  }
  SaveReport save(CheckpointStore& store, int64_t step) {
    TrainableSet set(layout(), world_->rank());
    set.fill(static_cast<uint32_t>(step));
    return store.save(*world_, stream_, state_at(step), set.tensors(), 1);
  }
  std::vector<std::string> names() {
    world_->barrier();
    auto list = posix_filesystem().list(run_);
    world_->barrier();
    return list;
  }
  void expect_loads(Communicator& world, Layout to, int64_t step) {
    CheckpointStore store(posix_filesystem(), run_, {});
    const Discovery found = store.find_newest(world);
    ASSERT_TRUE(found.checkpoint.has_value());
    EXPECT_EQ(found.checkpoint->state.step, step);
    TrainableSet set(to, world.rank());
    set.clear();
    store.load(*found.checkpoint, stream_, set.tensors());
    EXPECT_EQ(set.differences(static_cast<uint32_t>(step)), 0);
  }

  MpiSession session_;
  std::unique_ptr<Communicator> world_;
  Stream stream_{Device{}};
  std::string run_;
};

TEST_F(StoreTest, RoundTripIsBitwise) {
  CheckpointStore store(posix_filesystem(), run_, {});
  EXPECT_TRUE(store.find_newest(*world_).none_there());
  const SaveReport report = save(store, 5);
  EXPECT_GT(report.bytes, 0);
  EXPECT_TRUE(report.notes.empty());
  EXPECT_EQ(report.directory, join_path(run_, "step-5"));
  EXPECT_EQ(names(), std::vector<std::string>{"step-5"});
  expect_loads(*world_, layout(), 5);
  EXPECT_TRUE(save(store, 5).already_saved);
}

TEST_F(StoreTest, LoadsOnFewerRanks) {
  CheckpointStore store(posix_filesystem(), run_, {});
  save(store, 5);
  world_->barrier();
  const auto alone = world_->split(world_->rank(), "alone");
  expect_loads(*alone, {1, 1, 1}, 5);
  if (world_->size() == 4) {
    const auto pair = world_->split(world_->rank() / 2, "pair");
    expect_loads(*pair, {2, 1, 2}, 5);
    expect_loads(*pair, {2, 2, 1}, 5);
    expect_loads(*world_, {4, 4, 1}, 5);
  }
}

TEST_F(StoreTest, TensorsMayChangeOnceTheSnapshotIsTaken) {
  CheckpointStore store(posix_filesystem(), run_, {});
  TrainableSet set(layout(), world_->rank());
  set.fill(5);
  PendingSave pending = store.begin(*world_, stream_, state_at(5), set.tensors(), 1);
  pending.copy();
  set.fill(6);
  EXPECT_THROW((void)store.begin(*world_, stream_, state_at(6), set.tensors(), 1), InternalError);
  pending.write();
  pending.exchange(*world_);
  set.fill(7);
  pending.commit();
  EXPECT_EQ(pending.finish(*world_).directory, join_path(run_, "step-5"));
  expect_loads(*world_, layout(), 5);
  set.fill(6);
  store.save(*world_, stream_, state_at(6), set.tensors(), 1);
  expect_loads(*world_, layout(), 6);
}

TEST_F(StoreTest, AFullDiskOnOneRankFailsOnAllAndHarmsNothing) {
  CheckpointStore good(posix_filesystem(), run_, {});
  save(good, 5);
  const int broken = world_->size() - 1;
  FaultyFileSystem faulty(posix_filesystem());
  if (world_->rank() == broken) faulty.limit_bytes(1000);
  CheckpointStore store(faulty, run_, {});
  std::string message;
  try {
    save(store, 6);
  } catch (const IoError& error) {
    message = error.what();
  }
  for (const std::string& one : world_->host_all_gather(message)) EXPECT_EQ(one, message);
  EXPECT_NE(message.find(str_cat("checkpoint of step 6 not saved: rank ", broken)), std::string::npos)
      << message;
  EXPECT_NE(message.find("No space left on device"), std::string::npos) << message;
  EXPECT_NE(message.find("shard-0000"), std::string::npos) << message;
  EXPECT_EQ(names(), std::vector<std::string>{"step-5"});
  expect_loads(*world_, layout(), 5);
  faulty.heal();
  save(store, 7);
  expect_loads(*world_, layout(), 7);
}

TEST_F(StoreTest, PruningKeepsTheNewestAndThePeriodic) {
  CheckpointStore store(posix_filesystem(), run_, {.keep = 2, .keep_every = 4});
  for (int64_t step = 1; step <= 7; ++step) save(store, step);
  EXPECT_EQ(names(), (std::vector<std::string>{"step-4", "step-6", "step-7"}));
  EXPECT_THROW(CheckpointStore(posix_filesystem(), run_, {.keep = 1}), UsageError);
}

TEST_F(StoreTest, LeftoversOfEarlierLaunchesAreIgnoredAndCleaned) {
  CheckpointStore store(posix_filesystem(), run_, {});
  if (world_->rank() == 0) {
    for (const char* name :
         {"step-9.tmp.0", "step-3.old.0", "step-9.bad.0", "step-9.tmp.7", "step-9.tmp.x"}) {
      std::filesystem::create_directory(join_path(run_, name));
      std::ofstream(join_path(join_path(run_, name), "shard-00000.safetensors")) << "torn";
    }
  }
  world_->barrier();
  EXPECT_TRUE(store.find_newest(*world_).none_there());
  save(store, 5);
  // Not ours to remove: a newer launch's, a damaged one kept for inspection, and a name we did not give.
  EXPECT_EQ(names(), (std::vector<std::string>{"step-5", "step-9.bad.0", "step-9.tmp.7", "step-9.tmp.x"}));
}

TEST_F(StoreTest, ADirectoryThatIsNotThereIsNoCheckpoint) {
  CheckpointStore store(posix_filesystem(), join_path(run_, "none"), {});
  EXPECT_TRUE(store.find_newest(*world_).none_there());
  EXPECT_THROW((void)open_checkpoint(posix_filesystem(), *world_, join_path(run_, "step-1")), DataError);
  EXPECT_THROW(save(store, 5), IoError);
}

}  // namespace
}  // namespace pesc
