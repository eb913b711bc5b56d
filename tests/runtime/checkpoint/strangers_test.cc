// What the user or another run has put into the run directory: it is neither counted, nor removed, nor
// resumed from.
#include <gtest/gtest.h>

#include <algorithm>

#include "runtime/checkpoint/manifest.h"
#include "runtime/checkpoint/run_identity.h"
#include "runtime/checkpoint/store.h"
#include "tests/runtime/checkpoint/thread_communicator.h"
#include "tests/runtime/checkpoint/trainable_set.h"
#include "tests/runtime/filesystem/faulty_filesystem.h"

namespace pesc {
namespace {

using testing::FaultyFileSystem;
using testing::MemoryFileSystem;
using testing::run_ranks;
using testing::state_at;
using testing::TrainableSet;
using Names = std::vector<std::string>;

class StrangersTest : public ::testing::Test {
 protected:
  void SetUp() override { files_.create_directory("run"); }

  // A launch that resumes and then saves these steps; what it says. `before`: called before each save.
  Names launch(const std::string& run, uint64_t launch_id, const std::vector<int64_t>& steps,
               const std::function<void(int64_t)>& before = {}, CheckpointOptions options = {}) {
    Names said;
    const auto errors = run_ranks(1, [&](Communicator& world) {
      Stream stream{Device{}};
      TrainableSet set({1, 1, 1}, 0);
      CheckpointStore store(files_, run, options);
      const Discovery found = store.find_newest(world);
      resumed_ = found.checkpoint ? found.checkpoint->state.step : -1;
      none_there_ = found.none_there();
      for (const std::string& line : found.passed_over()) said.push_back(line);
      const std::string note = store.claim(found.checkpoint ? &*found.checkpoint : nullptr, launch_id);
      if (!note.empty()) said.push_back(note);
      for (const int64_t step : steps) {
        if (before) before(step);
        set.fill(static_cast<uint32_t>(step));
        const SaveReport report = store.save(world, stream, state_at(step), set.tensors(), launch_id);
        said.insert(said.end(), report.notes.begin(), report.notes.end());
      }
    });
    EXPECT_EQ(errors[0], "");
    return said;
  }
  void put(const std::string& path, const std::string& text = "x") {
    const auto file = files_.create_file(path);
    file->append(std::as_bytes(std::span(text)));
    file->close();
  }
  void copy(const std::string& from, const std::string& to) {
    files_.create_directory(to);
    for (const std::string& name : files_.list(from)) {
      put(join_path(to, name), "");
      files_.contents(join_path(to, name)) = files_.contents(join_path(from, name));
    }
  }
  // Without the run's file, which every directory of a run has.
  Names names(const std::string& run = "run") {
    Names all = files_.list(run);
    std::erase(all, kRunFile);
    return all;
  }
  static int64_t lines_with(const Names& said, const std::string& words) {
    return std::count_if(said.begin(), said.end(),
                         [&](const std::string& line) { return line.find(words) != std::string::npos; });
  }
  // As an older pesc wrote it.
  void forget_run(const std::string& folder, uint64_t launch_id) {
    auto& bytes = files_.contents(join_path(folder, kManifestName));
    proto::Manifest m = parse_manifest({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, folder);
    m.clear_checksum();
    m.clear_run_id();
    m.set_launch_id(launch_id);
    const std::string text = serialize_manifest(m);
    bytes.assign(std::as_bytes(std::span(text)).begin(), std::as_bytes(std::span(text)).end());
  }

  MemoryFileSystem files_;
  int64_t resumed_ = -1;
  bool none_there_ = false;
};

TEST_F(StrangersTest, FoldersThatAppearUnderTheRunAreNotCounted) {
  const Names said = launch("run", 1, {1, 2, 3, 4, 5, 6}, [&](int64_t step) {
    if (step != 3) return;
    for (const char* name : {"run/step-1000", "run/step-2000", "run/step-0"}) files_.create_directory(name);
    put("run/step-2000/thesis.tex");
  });
  EXPECT_EQ(names(), (Names{"step-0", "step-1000", "step-2000", "step-5", "step-6"}));
  EXPECT_EQ(lines_with(said, "step-0'"), 1) << "named once, not at every save";
  launch("run", 2, {});
  EXPECT_EQ(resumed_, 6);
}

TEST_F(StrangersTest, CheckpointsOfAnotherRunStay) {
  files_.create_directory("other");
  launch("other", 1, {2, 900});
  const Names said = launch("run", 1, {1, 3, 4, 5, 6}, [&](int64_t step) {
    if (step != 4) return;
    copy("other/step-2", "run/step-2");
    copy("other/step-900", "run/step-900");
  });
  EXPECT_EQ(names(), (Names{"step-2", "step-5", "step-6", "step-900"}));
  EXPECT_EQ(lines_with(said, "step-2' is not removed, nor counted as kept: it is of another run"), 1);
  const Names again = launch("run", 2, {7, 8});
  EXPECT_EQ(resumed_, 6);
  EXPECT_EQ(lines_with(again, "step-900' is of another run"), 1);
  EXPECT_EQ(names(), (Names{"step-2", "step-7", "step-8", "step-900"}));
}

TEST_F(StrangersTest, WhatOnlyHasTheNameOfACheckpointIsPassedWithAWord) {
  launch("run", 1, {5});
  put("run/step-6");
  files_.create_directory("run/step-7");
  put("run/step-7/readme");
  for (const char* name :
       {"run/step-008", "run/step-99999999999999999999", "run/step-9-copy", "run/step-9.tmp.x"})
    files_.create_directory(name);
  const Names said = launch("run", 2, {});
  EXPECT_EQ(resumed_, 5);
  for (const char* name :
       {"step-6'", "step-7'", "step-008'", "step-99999999999999999999'", "step-9-copy'", "step-9.tmp.x'"})
    EXPECT_EQ(lines_with(said, name), 1) << name;
  EXPECT_EQ(said.size(), 6U);
}

TEST_F(StrangersTest, WithNothingButSuchNamesItIsAFreshStart) {
  files_.create_directory("run/step-1000");
  const Names said = launch("run", 1, {1, 2});
  EXPECT_TRUE(none_there_);
  EXPECT_EQ(resumed_, -1);
  EXPECT_EQ(said.size(), 1U);
  EXPECT_EQ(names(), (Names{"step-1", "step-1000", "step-2"}));
}

TEST_F(StrangersTest, WhatIsInTheWayOfANewCheckpointIsPutAside) {
  put("run/step-2");
  files_.create_directory("run/step-3");
  put("run/step-3/notes");
  files_.create_directory("run/step-3.bad.1");
  const Names said = launch("run", 1, {1, 2, 3});
  EXPECT_EQ(names(), (Names{"step-2", "step-2.bad.1", "step-3", "step-3.bad.1", "step-3.bad.10"}));
  EXPECT_TRUE(files_.exists("run/step-3.bad.10/notes"));
  EXPECT_EQ(lines_with(said, "was in the way"), 2);
}

TEST_F(StrangersTest, ACheckpointWithTheUsersFilesInItIsNotRemoved) {
  const Names said = launch("run", 1, {1, 2, 3, 4, 5}, [&](int64_t step) {
    if (step == 2) put("run/step-1/notes.txt");
  });
  EXPECT_EQ(names(), (Names{"step-1", "step-4", "step-5"}));
  EXPECT_EQ(files_.list("run/step-1"), (Names{kManifestName, "notes.txt", "shard-00000.safetensors"}));
  EXPECT_EQ(lines_with(said, "notes.txt"), 1);
}

TEST_F(StrangersTest, LeftoversWithForeignContentStay) {
  for (const char* name : {"run/step-3.tmp.1", "run/step-3.old.1", "run/step-4.tmp.1"})
    files_.create_directory(name);
  put("run/step-3.tmp.1/shard-00000.safetensors");
  put("run/step-3.old.1/mine");
  put("run/step-5.tmp.1");
  const Names said = launch("run", 2, {1, 2, 3});
  EXPECT_EQ(names(), (Names{"step-2", "step-3", "step-3.old.1", "step-5.tmp.1"}));
  EXPECT_EQ(lines_with(said, "step-3.old.1' stays"), 1);
  EXPECT_EQ(lines_with(said, "step-5.tmp.1' stays"), 1);
}

TEST_F(StrangersTest, ACopiedCheckpointIsGoneOnFromAsARunOfItsOwn) {
  files_.create_directory("other");
  launch("other", 1, {6, 7});
  copy("other/step-7", "run/step-7");
  const Names said = launch("run", 1, {});
  EXPECT_EQ(resumed_, 7);
  EXPECT_EQ(lines_with(said, "a run of its own"), 1);
  launch("run", 2, {8, 9, 10});  // ended before it had saved anything: it still knows where it began
  EXPECT_EQ(resumed_, 7);
  EXPECT_EQ(names(), (Names{"step-10", "step-7", "step-9"}));
  const RunIdentity mine = read_run_identity(files_, "run"), theirs = read_run_identity(files_, "other");
  EXPECT_NE(mine.id, theirs.id);
  EXPECT_EQ(mine.from, theirs.id);
  copy("run/step-10", "other/step-10");
  launch("other", 2, {});
  EXPECT_EQ(resumed_, 7);
}

TEST_F(StrangersTest, ARunOfAnOlderPescGoesOnAndIsPruned) {
  launch("run", 4, {1, 2});
  files_.remove(join_path("run", kRunFile));
  for (const char* folder : {"run/step-1", "run/step-2"}) forget_run(folder, 4);
  EXPECT_EQ(launch("run", 5, {3, 4}).size(), 0U);
  EXPECT_EQ(resumed_, 2);
  EXPECT_EQ(names(), (Names{"step-3", "step-4"}));
  // But not those of another run of an older one: its base is another.
  files_.create_directory("other");
  launch("other", 1, {1});
  copy("other/step-1", "run/step-1");
  forget_run("run/step-1", 1);
  auto& bytes = files_.contents("run/step-1/manifest.pb");
  proto::Manifest m = parse_manifest({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, "it");
  m.clear_checksum();
  m.mutable_base()->set_digest("another");
  const std::string text = serialize_manifest(m);
  bytes.assign(std::as_bytes(std::span(text)).begin(), std::as_bytes(std::span(text)).end());
  launch("run", 6, {5, 6});
  EXPECT_EQ(names(), (Names{"step-1", "step-5", "step-6"}));
}

TEST_F(StrangersTest, OnlyCheckpointsOfOthersAreNoFreshStart) {
  files_.create_directory("other");
  launch("other", 1, {7});
  launch("run", 1, {});
  copy("other/step-7", "run/step-7");
  const Names said = launch("run", 2, {});
  EXPECT_EQ(resumed_, -1);
  EXPECT_FALSE(none_there_);
  EXPECT_EQ(lines_with(said, "step-7' is of another run"), 1);
}

TEST_F(StrangersTest, ADamagedRunFileIsRefusedWithAWayOut) {
  launch("run", 1, {1});
  for (const char* text : {"", "run\n", "run 12\n", "run 0123456789abcdef0123456789abcdeg\n", "x\n",
                           "run 0123456789abcdef0123456789abcdef more\n", "from_step 3\n",
                           "run 0123456789abcdef0123456789abcdef\nfrom_step -3\n"}) {
    put(join_path("run", kRunFile), text);
    const auto errors = run_ranks(2, [&](Communicator& world) {
      CheckpointStore store(files_, "run", {});
      (void)store.find_newest(world);
    });
    for (const std::string& error : errors)
      EXPECT_NE(error.find("remove it"), std::string::npos) << text << error;
  }
  for (const RunIdentity& run : {RunIdentity{std::string(32, 'a'), "", -1, 0},
                                 RunIdentity{std::string(32, 'a'), std::string(32, '0'), 7, 3}}) {
    const RunIdentity again = parse_run_identity(to_string(run), "it");
    EXPECT_EQ(to_string(again), to_string(run));
    EXPECT_EQ(again.from_step, run.from_step);
  }
}

TEST_F(StrangersTest, PeriodicOnesAreKeptBesides) {
  launch("run", 1, {1, 2, 3, 4, 5, 6, 7, 8, 9}, {}, {.keep = 3, .keep_every = 4});
  EXPECT_EQ(names(), (Names{"step-4", "step-7", "step-8", "step-9"}));
}

}  // namespace
}  // namespace pesc
