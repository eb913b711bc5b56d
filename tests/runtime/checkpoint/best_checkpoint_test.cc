// The checkpoint with the lowest eval loss: it is kept besides the newest ones, and its mark never names one
// that is gone, wherever a save is cut off.
#include "runtime/checkpoint/best_checkpoint.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <limits>
#include <utility>

#include "configs/schema/manifest.pb.h"
#include "runtime/checkpoint/manifest.h"
#include "runtime/checkpoint/run_identity.h"
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
using Names = std::vector<std::string>;
using Best = std::optional<BestCheckpoint>;

constexpr Layout kLayout{2, 2, 2};

std::string save(FileSystem& files, int64_t step, const Best& best, uint64_t launch_id = 1) {
  const auto errors = run_ranks(kLayout.world, [&](Communicator& world) {
    Stream stream{Device{}};
    TrainableSet set(kLayout, world.rank());
    set.fill(static_cast<uint32_t>(step));
    CheckpointStore store(files, "run", {});
    CheckpointState state = state_at(step);
    state.best = best;
    store.save(world, stream, state, set.tensors(), launch_id);
  });
  for (const std::string& error : errors) EXPECT_EQ(error, errors[0]);
  return errors[0];
}

Names steps(FileSystem& files) {
  Names names;
  for (const std::string& name : files.list("run"))
    if (step_of_directory(name)) names.push_back(name);
  return names;
}

class BestCheckpoints : public ::testing::Test {
 protected:
  void SetUp() override {
    files_.create_directory("run");
    files_.sync_directory("");
  }
  MemoryFileSystem files_;
};

TEST_F(BestCheckpoints, IsKeptBesidesTheNewestAndMarked) {
  EXPECT_EQ(read_best_mark(files_, "run"), std::nullopt);
  const Best two = BestCheckpoint{2, 1.5};
  ASSERT_EQ(save(files_, 1, BestCheckpoint{1, 1.75}), "");
  EXPECT_EQ(read_best_mark(files_, "run"), (BestCheckpoint{1, 1.75}));
  ASSERT_EQ(save(files_, 2, two), "");
  for (int64_t step = 3; step <= 6; ++step) ASSERT_EQ(save(files_, step, two), "");
  EXPECT_EQ(steps(files_), (Names{"step-2", "step-5", "step-6"}));
  EXPECT_EQ(read_best_mark(files_, "run"), two);
  EXPECT_EQ(best_checkpoint_folder(files_, "run"), "run/step-2");
  // The manifest has it too.
  run_ranks(1, [&](Communicator& world) {
    EXPECT_EQ(open_checkpoint(files_, world, "run/step-6").state.best, two);
    EXPECT_EQ(peek_checkpoint(files_, "run/step-2").state.best, two);
  });
  // A better one takes its place, and the older is pruned as any other.
  ASSERT_EQ(save(files_, 7, BestCheckpoint{7, 0.1}), "");
  EXPECT_EQ(steps(files_), (Names{"step-6", "step-7"}));
  EXPECT_EQ(best_checkpoint_folder(files_, "run"), "run/step-7");
}

// One of its folders can be entered, but not listed.
class UnlistedFolder : public FaultyFileSystem {
 public:
  UnlistedFolder(FileSystem& base, std::string folder) : FaultyFileSystem(base), folder_(std::move(folder)) {}
  std::vector<std::string> list(const std::string& path) override {
    if (path == folder_) throw io_error("list", path, EACCES);
    return FaultyFileSystem::list(path);
  }

 private:
  std::string folder_;
};

TEST_F(BestCheckpoints, ARunIsNoCheckpointAndTheErrorNamesThoseInsideOfIt) {
  const auto refusal = [&](const std::function<void()>& open) -> std::string {
    try {
      open();
    } catch (const DataError& error) {
      return error.what();
    }
    return "no error";
  };
  const auto expect = [&](const std::string& folder, const std::string& text) {
    EXPECT_EQ(refusal([&] { (void)peek_checkpoint(files_, folder); }), text);
    run_ranks(2, [&](Communicator& world) {
      EXPECT_EQ(refusal([&] { (void)open_checkpoint(files_, world, folder); }), text);
    });
  };
  for (int64_t step = 1; step <= 3; ++step) ASSERT_EQ(save(files_, step, std::nullopt), "");
  const std::string begin = "checkpoint 'run': is the folder of a run, not a checkpoint";
  expect("run", begin + "; name a checkpoint inside of it: 'run/step-3' is the newest");
  ASSERT_EQ(save(files_, 4, BestCheckpoint{4, 1.5}), "");
  ASSERT_EQ(save(files_, 5, BestCheckpoint{4, 1.5}), "");
  expect("run",
         begin + "; name a checkpoint inside of it: 'run/step-5' is the newest, 'run/step-4' the best");
  // A folder without a manifest is none of them, marked or not.
  files_.create_directory("run/step-9");
  put_best_mark(files_, "run", BestCheckpoint{9, 1}, 1);
  const std::string newest_alone = begin + "; name a checkpoint inside of it: 'run/step-5' is the newest";
  expect("run", newest_alone);
  // A mark that cannot be read does not take the place of the error.
  files_.create_file("run/pesc.best")->append(std::as_bytes(std::span(std::string_view("step x"))));
  expect("run", newest_alone);
  files_.remove_all("run/step-4");
  files_.remove_all("run/step-5");
  files_.remove_all("run/step-3");
  write_run_identity(files_, "run", new_run_identity(nullptr, 1), 1);
  expect("run", begin + ", and has no checkpoint yet");
  // Nor does a folder that can be entered, but not listed.
  UnlistedFolder unlisted(files_, "run");
  EXPECT_EQ(refusal([&] { (void)peek_checkpoint(unlisted, "run"); }),
            begin + "; name a checkpoint inside of it");
  // Other folders are told by the file that they lack.
  files_.create_directory("other");
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "manifest.pb",
                      refusal([&] { (void)peek_checkpoint(files_, "other"); }));
}

TEST_F(BestCheckpoints, WithoutOneNothingIsMarkedNorKept) {
  for (int64_t step = 1; step <= 3; ++step) ASSERT_EQ(save(files_, step, std::nullopt), "");
  EXPECT_EQ(files_.list("run"), (Names{"step-2", "step-3"}));
  try {
    (void)best_checkpoint_folder(files_, "run");
    ADD_FAILURE() << "no error";
  } catch (const DataError& error) {
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "run_dir 'run' has no best checkpoint", error.what());
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "checkpoint.keep_best", error.what());
  }
}

TEST_F(BestCheckpoints, TheMarkIsPutAndTakenAway) {
  const double third = 1.0 / 3;
  put_best_mark(files_, "run", BestCheckpoint{3, third}, 1);
  EXPECT_EQ(read_best_mark(files_, "run"), (BestCheckpoint{3, third}));
  EXPECT_THROW((void)best_checkpoint_folder(files_, "run"), DataError);  // there is no step-3
  // The same again costs no write.
  FaultyFileSystem counting(files_);
  put_best_mark(counting, "run", BestCheckpoint{3, third}, 2);
  EXPECT_EQ(counting.operations(), 0);
  put_best_mark(files_, "run", std::nullopt, 1);
  put_best_mark(files_, "run", std::nullopt, 1);
  EXPECT_EQ(files_.list("run"), Names{});
}

TEST_F(BestCheckpoints, ADamagedMarkIsRefusedByName) {
  for (const char* text : {"", "step", "step 3\n", "step 3\neval_loss x\n", "step -1\neval_loss 1\n",
                           "step 3\neval_loss nan\n", "step 3\neval_loss 1\nmore", "loss 3\neval_loss 1\n"}) {
    {
      const auto file = files_.create_file("run/pesc.best");
      file->append(std::as_bytes(std::span(std::string_view(text))));
      file->close();
    }
    try {
      (void)read_best_mark(files_, "run");
      ADD_FAILURE() << text;
    } catch (const DataError& error) {
      EXPECT_TRUE(std::string(error.what()).starts_with("run/pesc.best: ")) << error.what();
    }
  }
}

// The best moves from step 10 to step 30, which is the newest; step 10 is then pruned.
TEST_F(BestCheckpoints, AtEveryOperationTheMarkNamesACompleteCheckpoint) {
  const auto prepare = [](MemoryFileSystem& files) {
    files.create_directory("run");
    files.sync_directory("");
    ASSERT_EQ(save(files, 10, BestCheckpoint{10, 2}), "");
    for (const int64_t step : {20, 25}) ASSERT_EQ(save(files, step, BestCheckpoint{10, 2}), "");
  };
  MemoryFileSystem whole;
  prepare(whole);
  FaultyFileSystem counted(whole);
  ASSERT_EQ(save(counted, 30, BestCheckpoint{30, 1}), "");
  EXPECT_EQ(steps(whole), (Names{"step-25", "step-30"}));
  const int64_t operations = counted.operations();
  int64_t before = 0, after = 0;
  for (int64_t k = 0; k <= operations; ++k) {
    for (uint64_t variant = 0; variant < 3; ++variant) {
      SCOPED_TRACE(str_cat("crash at operation ", k, ", variant ", variant));
      MemoryFileSystem files;
      prepare(files);
      FaultyFileSystem faulty(files);
      faulty.stop_at(k);
      (void)save(faulty, 30, BestCheckpoint{30, 1});
      files.crash(variant == 0 ? std::nullopt
                               : std::optional<uint64_t>(static_cast<uint64_t>(k) * 8 + variant));
      const Best mark = read_best_mark(files, "run");
      ASSERT_TRUE(mark.has_value());
      ++(mark->step == 10 ? before : after);
      run_ranks(1, [&](Communicator& world) {
        EXPECT_EQ(open_checkpoint(files, world, best_checkpoint_folder(files, "run")).state.step, mark->step);
      });
      if (HasFatalFailure() || HasNonfatalFailure()) return;
    }
  }
  EXPECT_GT(before, 0);
  EXPECT_GT(after, 0);
}

TEST_F(BestCheckpoints, AManifestWithAnImpossibleOneIsRefused) {
  ASSERT_EQ(save(files_, 5, BestCheckpoint{5, 1}), "");
  const std::string bytes = files_.read_all("run/step-5/manifest.pb", kMaxManifestBytes);
  const auto refused = [&](int64_t step, double loss) {
    proto::Manifest manifest = parse_manifest(bytes, "m");
    manifest.clear_checksum();
    manifest.mutable_best()->set_step(step);
    manifest.mutable_best()->set_eval_loss(loss);
    try {
      (void)parse_manifest(serialize_manifest(manifest), "m");
    } catch (const DataError& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_EQ(refused(5, 1), "accepted");
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "best.step is 6", refused(6, 1));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "best.step is -1", refused(-1, 1));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "best.eval_loss is",
                      refused(5, std::numeric_limits<double>::infinity()));
}

}  // namespace
}  // namespace pesc
