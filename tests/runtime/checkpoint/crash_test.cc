// The power is cut, or a call fails, at every single file operation of a save. Whatever happens, a complete
// checkpoint is found, and it is the previous or the new one.
#include <gtest/gtest.h>

#include <mutex>

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

constexpr Layout kLayout{2, 2, 2};

// The error of every rank; they must be the same.
std::string save_step(FileSystem& files, int64_t step, uint64_t launch_id) {
  const auto errors = run_ranks(kLayout.world, [&](Communicator& world) {
    Stream stream{Device{}};
    TrainableSet set(kLayout, world.rank());
    set.fill(static_cast<uint32_t>(step));
    CheckpointStore store(files, "run", {});
    store.save(world, stream, state_at(step), set.tensors(), launch_id);
  });
  for (const std::string& error : errors) EXPECT_EQ(error, errors[0]);
  return errors[0];
}

// The step that a new launch resumes from, after checking every bit of it; nothing may be damaged.
int64_t resume(FileSystem& files) {
  int64_t step = -1;
  const auto errors = run_ranks(kLayout.world, [&](Communicator& world) {
    Stream stream{Device{}};
    CheckpointStore store(files, "run", {});
    const Discovery found = store.find_newest(world);
    EXPECT_TRUE(found.damaged.empty()) << found.damaged[0];
    ASSERT_TRUE(found.checkpoint.has_value());
    TrainableSet set(kLayout, world.rank());
    set.clear();
    store.load(*found.checkpoint, stream, set.tensors());
    EXPECT_EQ(set.differences(static_cast<uint32_t>(found.checkpoint->state.step)), 0);
    EXPECT_EQ(found.checkpoint->state.consumed_samples, found.checkpoint->state.step * 128);
    if (world.rank() == 0) step = found.checkpoint->state.step;
  });
  for (const std::string& error : errors) EXPECT_EQ(error, "");
  return step;
}

int64_t good_checkpoints(FileSystem& files) {
  int64_t good = 0;
  run_ranks(1, [&](Communicator& world) {
    for (const std::string& name : files.list("run"))
      if (step_of_directory(name))
        good += open_checkpoint(files, world, join_path("run", name)).launch_id > 0;
  });
  return good;
}

void prepare(MemoryFileSystem& memory) {
  memory.create_directory("run");
  memory.sync_directory("");
  ASSERT_EQ(save_step(memory, 10, 1), "");
  ASSERT_EQ(save_step(memory, 20, 1), "");
}

int64_t operations_of_a_save() {
  MemoryFileSystem memory;
  prepare(memory);
  FaultyFileSystem faulty(memory);
  EXPECT_EQ(save_step(faulty, 30, 1), "");
  return faulty.operations();
}

TEST(CrashTest, AtEveryOperationThePreviousOrTheNewOneIsComplete) {
  const int64_t operations = operations_of_a_save();
  ASSERT_GT(operations, 30);
  int64_t previous = 0, next = 0;
  for (int64_t k = 0; k <= operations; ++k) {
    // Variant 0 loses all that was not synced; the others lose a part of it.
    for (uint64_t variant = 0; variant < 5; ++variant) {
      SCOPED_TRACE(str_cat("crash at operation ", k, ", variant ", variant));
      MemoryFileSystem memory;
      prepare(memory);
      FaultyFileSystem faulty(memory);
      faulty.stop_at(k);
      const std::string error = save_step(faulty, 30, 1);
      memory.crash(variant == 0 ? std::nullopt
                                : std::optional<uint64_t>(static_cast<uint64_t>(k) * 8 + variant));

      const int64_t step = resume(memory);
      EXPECT_TRUE(step == 20 || step == 30) << step;
      if (error.empty()) {
        EXPECT_EQ(step, 30) << "a save that was reported is lost";
      }
      EXPECT_GE(good_checkpoints(memory), 2);
      ++(step == 20 ? previous : next);

      // The next launch cleans up, saves the same step again, and leaves nothing but checkpoints.
      ASSERT_EQ(save_step(memory, 30, 2), "");
      EXPECT_EQ(resume(memory), 30);
      for (const std::string& name : memory.list("run"))
        EXPECT_TRUE(step_of_directory(name).has_value() || name == "step-30.bad.2") << name;
      if (HasFatalFailure() || HasNonfatalFailure()) return;
    }
  }
  EXPECT_GT(previous, 0);
  EXPECT_GT(next, 0);
}

TEST(CrashTest, AnErrorAtAnyOperationHarmsNothing) {
  const int64_t operations = operations_of_a_save();
  for (int64_t k = 0; k < operations; ++k) {
    SCOPED_TRACE(str_cat("error at operation ", k));
    MemoryFileSystem memory;
    prepare(memory);
    FaultyFileSystem faulty(memory);
    faulty.fail_at(k, ENOSPC);
    const std::string error = save_step(faulty, 30, 1);
    if (!error.empty()) {
      EXPECT_NE(error.find("No space left on device"), std::string::npos) << error;
    }
    const int64_t step = resume(memory);
    EXPECT_TRUE(step == 30 || (step == 20 && !error.empty()));
    EXPECT_GE(good_checkpoints(memory), 2);
    ASSERT_EQ(save_step(memory, 40, 1), "");
    EXPECT_EQ(resume(memory), 40);
    if (HasFatalFailure() || HasNonfatalFailure()) return;
  }
}

TEST(CrashTest, AStaleLaunchCannotCommit) {
  MemoryFileSystem memory;
  prepare(memory);
  const auto errors = run_ranks(2, [&](Communicator& world) {
    Stream stream{Device{}};
    TrainableSet set(kLayout, world.rank());
    CheckpointStore store(memory, "run", {.still_ours = [] { return false; }});
    EXPECT_THROW(store.save(world, stream, state_at(30), set.tensors(), 1), IoError);
  });
  EXPECT_EQ(errors[0] + errors[1], "");
  EXPECT_EQ(resume(memory), 20);
  EXPECT_EQ(memory.list("run"), (std::vector<std::string>{"step-10", "step-20"}));
}

}  // namespace
}  // namespace pesc
