// Saving behind the steps: a file system that stands still until it is told to go on, ranks as threads.
#include "runtime/checkpoint/async_saver.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>

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

constexpr Layout kLayout{2, 2, 2};

// Creating a file whose path holds `held` waits until the gate is opened.
class GatedFileSystem : public FileSystem {
 public:
  explicit GatedFileSystem(FileSystem& base) : base_(base) {}
  void hold(std::string held) {
    const std::lock_guard lock(mutex_);
    held_ = std::move(held);
  }
  void open_gate() { hold(""); }
  void release() {
    open_gate();
    changed_.notify_all();
  }
  // Until `n` threads stand at the gate.
  void await_held(int n) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return waiting_ >= n; });
  }
  // Threads that used the file system.
  [[nodiscard]] std::set<std::thread::id> writers() {
    const std::lock_guard lock(mutex_);
    return writers_;
  }

  void create_directory(const std::string& path) override { base_.create_directory(path); }
  std::unique_ptr<WritableFile> create_file(const std::string& path) override {
    std::unique_lock lock(mutex_);
    writers_.insert(std::this_thread::get_id());
    if (!held_.empty() && path.find(held_) != std::string::npos) {
      ++waiting_;
      changed_.notify_all();
      changed_.wait(lock, [&] { return held_.empty(); });
      --waiting_;
    }
    lock.unlock();
    return base_.create_file(path);
  }
  std::unique_ptr<ReadableFile> open(const std::string& path) override { return base_.open(path); }
  FileKind kind(const std::string& path) override { return base_.kind(path); }
  std::vector<std::string> list(const std::string& path) override { return base_.list(path); }
  void rename(const std::string& from, const std::string& to) override { base_.rename(from, to); }
  void remove(const std::string& path) override { base_.remove(path); }
  void sync_directory(const std::string& path) override { base_.sync_directory(path); }

 private:
  FileSystem& base_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string held_;
  int waiting_ = 0;
  std::set<std::thread::id> writers_;
};

// The step that a new launch finds, after checking every bit of it.
int64_t newest(FileSystem& files) {
  int64_t step = -1;
  run_ranks(1, [&](Communicator& world) {
    Stream stream{Device{}};
    CheckpointStore store(files, "run", {});
    const Discovery found = store.find_newest(world);
    if (!found.checkpoint) return;
    TrainableSet set({1, 1, 1}, 0);
    set.clear();
    store.load(*found.checkpoint, stream, set.tensors());
    EXPECT_EQ(set.differences(static_cast<uint32_t>(found.checkpoint->state.step)), 0);
    step = found.checkpoint->state.step;
  });
  return step;
}

// A rank with its tensors and its saver.
struct Rank {
  Rank(FileSystem& files, Communicator& world_)
      : world(world_), set(kLayout, world.rank()), store(files, "run", {}), saver(store) {}
  void start(int64_t step) {
    set.fill(static_cast<uint32_t>(step));
    saver.start(world, stream, state_at(step), set.tensors(), 1);
  }
  Communicator& world;
  Stream stream{Device{}};
  TrainableSet set;  // outlives the saver, whose thread reads it until the copy is made
  CheckpointStore store;
  AsyncSaver saver;
};

void expect_no_errors(const std::vector<std::string>& errors) {
  for (const std::string& error : errors) EXPECT_EQ(error, "");
}

// `held` names a file that only one phase creates: each phase in turn must leave the steps free.
void expect_steps_go_on_while(const std::string& held, int held_ranks) {
  MemoryFileSystem memory;
  memory.create_directory("run");
  GatedFileSystem files(memory);
  files.hold(held);
  std::set<std::thread::id> mains;
  std::mutex mutex;
  expect_no_errors(run_ranks(kLayout.world, [&](Communicator& world) {
    {
      const std::lock_guard lock(mutex);
      mains.insert(std::this_thread::get_id());
    }
    Rank rank(files, world);
    EXPECT_FALSE(rank.saver.poll(world).has_value());
    rank.start(5);
    if (world.rank() == 0) {
      // The shard of a rank that stands at the gate cannot be written, so polls up to here change nothing.
      while (held == kManifestName && !memory.exists("run/step-5.tmp.1/shard-00001.safetensors"))
        std::this_thread::yield();
    }
    world.barrier();
    // Steps: each changes the tensors that are being saved.
    for (uint32_t step = 6; step < 30; ++step) {
      rank.saver.wait_for_copy(rank.stream);
      rank.set.fill(step);
      EXPECT_FALSE(rank.saver.poll(world).has_value());
      EXPECT_TRUE(rank.saver.pending());
    }
    if (held == kManifestName) {
      // Every rank has written, or soon will have; polls lead to the commit, which stands at the gate.
      std::atomic<bool> arrived = false;
      std::thread watch([&] {
        if (world.rank() == 0) files.await_held(held_ranks);
        arrived = true;
      });
      for (int64_t all = 0; all == 0;) {
        EXPECT_FALSE(rank.saver.poll(world).has_value());
        const int64_t mine = arrived ? 1 : 0;
        const auto seen = world.host_all_gather(std::span(&mine, 1));
        all = seen[0] * seen[1];
      }
      watch.join();
      for (int i = 0; i < 20; ++i) EXPECT_FALSE(rank.saver.poll(world).has_value());
    } else if (world.rank() == 0) {
      files.await_held(held_ranks);
    }
    world.barrier();
    EXPECT_EQ(memory.kind("run/step-5"), FileKind::kNone);
    world.barrier();
    if (world.rank() == 0) files.release();
    const auto report = rank.saver.wait(world);
    ASSERT_TRUE(report.has_value());
    EXPECT_EQ(report->directory, "run/step-5");
    EXPECT_EQ(report->bytes > 0, true);
    EXPECT_FALSE(rank.saver.pending());
    EXPECT_FALSE(rank.saver.wait(world).has_value());
  }));
  EXPECT_EQ(newest(memory), 5);
  for (const std::thread::id& id : files.writers()) EXPECT_FALSE(mains.contains(id));
}

TEST(AsyncSaverTest, StepsGoOnWhileAllRanksWrite) {
  expect_steps_go_on_while("shard-", 2);
}

TEST(AsyncSaverTest, StepsGoOnWhileOneRankWrites) {
  expect_steps_go_on_while("shard-00001", 1);
}

TEST(AsyncSaverTest, StepsGoOnWhileRankZeroCommits) {
  expect_steps_go_on_while(kManifestName, 1);
}

// What an optimizer step does right after wait_for_copy() is not in the checkpoint, however large it is.
TEST(AsyncSaverTest, WhatChangesAfterTheCopyIsNotSaved) {
  MemoryFileSystem memory;
  memory.create_directory("run");
  expect_no_errors(run_ranks(kLayout.world, [&](Communicator& world) {
    Rank rank(memory, world);
    rank.saver.wait_for_copy(rank.stream);  // nothing is under way
    for (int64_t step = 1; step <= 50; ++step) {
      rank.start(step);
      rank.saver.wait_for_copy(rank.stream);
      rank.set.fill(1000);
      ASSERT_TRUE(rank.saver.wait(world).has_value());
      rank.saver.wait_for_copy(rank.stream);
      world.barrier();
      if (world.rank() == 0) {
        EXPECT_EQ(newest(memory), step);
      }
      world.barrier();
    }
  }));
}

TEST(AsyncSaverTest, PollsAloneFinishASave) {
  MemoryFileSystem memory;
  memory.create_directory("run");
  expect_no_errors(run_ranks(kLayout.world, [&](Communicator& world) {
    Rank rank(memory, world);
    for (const int64_t step : {5, 6, 7}) {
      rank.start(step);
      rank.saver.wait_for_copy(rank.stream);
      EXPECT_THROW(rank.start(step + 100), InternalError);
      rank.set.fill(99);
      std::optional<SaveReport> report;
      while (!report) report = rank.saver.poll(world);
      EXPECT_EQ(report->directory, str_cat("run/step-", step));
    }
    // The step that is already there.
    rank.start(7);
    const auto report = rank.saver.wait(world);
    ASSERT_TRUE(report.has_value());
    EXPECT_TRUE(report->already_saved);
  }));
  EXPECT_EQ(newest(memory), 7);
  EXPECT_EQ(memory.list("run"), (std::vector<std::string>{"step-6", "step-7"}));
}

TEST(AsyncSaverTest, AnErrorOfOneRankIsTheSameOnAllAndTheNextSaveSucceeds) {
  MemoryFileSystem memory;
  memory.create_directory("run");
  FaultyFileSystem faulty(memory);
  const auto errors = run_ranks(kLayout.world, [&](Communicator& world) {
    Rank rank(world.rank() == 1 ? static_cast<FileSystem&>(faulty) : memory, world);
    rank.start(5);
    ASSERT_TRUE(rank.saver.wait(world).has_value());
    if (world.rank() == 1) faulty.limit_bytes(100);
    rank.start(6);
    std::string message;
    try {
      while (!rank.saver.poll(world)) {
      }
    } catch (const IoError& error) {
      message = error.what();
    }
    for (const std::string& one : world.host_all_gather(message)) EXPECT_EQ(one, message);
    EXPECT_NE(message.find("checkpoint of step 6 not saved: rank 1"), std::string::npos) << message;
    EXPECT_NE(message.find("No space left on device"), std::string::npos) << message;
    EXPECT_FALSE(rank.saver.pending());
    EXPECT_EQ(memory.list("run"), std::vector<std::string>{"step-5"});
    world.barrier();
    if (world.rank() == 1) faulty.heal();
    rank.start(7);
    ASSERT_TRUE(rank.saver.wait(world).has_value());
  });
  expect_no_errors(errors);
  EXPECT_EQ(newest(memory), 7);
}

// Every operation of a save in turn fails on rank 0, in the background: all ranks end with one error or none.
TEST(AsyncSaverTest, AnErrorAtAnyOperationIsAgreed) {
  int64_t failures = 0, successes = 0;
  // A save that succeeds in spite of the error had only the tidying left to do.
  for (int64_t k = 0; successes < 3; ++k) {
    ASSERT_LT(k, 500);
    MemoryFileSystem memory;
    memory.create_directory("run");
    FaultyFileSystem faulty(memory);
    const auto errors = run_ranks(kLayout.world, [&](Communicator& world) {
      Rank rank(world.rank() == 0 ? static_cast<FileSystem&>(faulty) : memory, world);
      rank.start(5);
      EXPECT_TRUE(rank.saver.wait(world).has_value());
      if (world.rank() == 0) faulty.fail_at(k, EIO);
      rank.start(6);
      EXPECT_TRUE(rank.saver.wait(world).has_value());
    });
    EXPECT_EQ(errors[0], errors[1]);
    const int64_t step = newest(memory);
    EXPECT_TRUE(step == 6 || (step == 5 && !errors[0].empty())) << k << ": " << step << ' ' << errors[0];
    ++(errors[0].empty() ? successes : failures);
  }
  EXPECT_GT(failures, 10);
}

TEST(AsyncSaverTest, TheEndOfASaverWaitsForItsThread) {
  MemoryFileSystem memory;
  memory.create_directory("run");
  GatedFileSystem files(memory);
  files.hold("shard-");
  std::thread opener([&] {
    files.await_held(2);
    files.release();
  });
  const auto errors = run_ranks(kLayout.world, [&](Communicator& world) {
    Rank rank(files, world);
    rank.start(5);
    throw DataError("the run ends here");
  });
  opener.join();
  EXPECT_EQ(errors[0], "the run ends here");
  EXPECT_EQ(newest(memory), -1);
}

}  // namespace
}  // namespace pesc
