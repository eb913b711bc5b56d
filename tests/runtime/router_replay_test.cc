// Recorded routing is replayed as it was, also across launches; never with another k, of several runs, or
// half a step.
#include "runtime/router_replay.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "ops/core/check.h"
#include "tests/runtime/hf/temp_folder.h"

namespace pesc {
namespace {

const std::string kRun(32, 'a'), kOtherRun(32, 'b');

RoutingOwner owner_of(uint64_t launch, int rank, int64_t top_k, int ranks = 1,
                      const std::string& run = kRun) {
  return {run, launch, rank, ranks, top_k};
}

Batch batch_of(std::vector<int64_t> samples, std::vector<int32_t> positions) {
  Batch b;
  b.slice_samples_host = std::move(samples);
  b.slice_positions_host = std::move(positions);
  return b;
}

HostBatch rows_of(const Batch& b) {
  HostBatch rows;
  rows.samples = b.slice_samples_host;
  rows.positions = b.slice_positions_host;
  return rows;
}

template <class Work>
std::string refusal(Work work) {
  try {
    work();
  } catch (const DataError& e) {
    return e.what();
  }
  return "nothing was refused";
}

TEST(RouterReplay, ReplaysWhatWasRecordedInEveryLaunch) {
  const TempFolder folder;
  const std::vector<int32_t> first{0, 1, 2, 3, 4, 5}, second{6, 7};
  const Batch a = batch_of({7, 7, 9}, {0, 1, 4});  // two rows
  const Batch b = batch_of({11}, {3});
  {
    RouterReplayRecorder recorder(folder.path(), owner_of(1, 0, 2));
    recorder.begin_step(5);
    recorder.record(a, 0, first);
    recorder.record(a, 1, first);
    recorder.end_step();
    recorder.flush();
  }
  {
    RouterReplayRecorder recorder(folder.path(), owner_of(2, 0, 2));  // a restart of the same rank
    recorder.begin_step(6);
    recorder.record(b, 1, second);
    recorder.end_step();
    recorder.flush();
  }
  RouterReplayReader replay(folder.path(), 2);
  std::vector<int32_t> got(6);
  replay.set_step(5);
  EXPECT_NO_THROW(replay.check(rows_of(a), 2, 8));
  ASSERT_TRUE(replay.replay(a, 1, got));
  EXPECT_EQ(got, first);
  const Batch part = batch_of({7}, {1});  // another layout's slice
  got.assign(2, -1);
  ASSERT_TRUE(replay.replay(part, 1, got));
  EXPECT_EQ(got, (std::vector<int32_t>{2, 3}));
  replay.set_step(6);
  ASSERT_TRUE(replay.replay(b, 1, got));
  EXPECT_EQ(got, second);
}

// Before the step, and not in the middle of it.
TEST(RouterReplay, SaysBeforeAStepWhatWasNotRecorded) {
  const TempFolder folder;
  const Batch a = batch_of({7, 7}, {0, 1});
  {
    RouterReplayRecorder recorder(folder.path(), owner_of(1, 0, 1));
    recorder.begin_step(5);
    recorder.record(a, 0, {0, 3});
    recorder.end_step();
  }
  RouterReplayReader replay(folder.path(), 1);
  replay.set_step(5);
  EXPECT_NO_THROW(replay.check(rows_of(a), 1, 4));
  EXPECT_NO_THROW(replay.check(HostBatch{}, 9, 4));  // a rank without rows
  const auto expect = [&](const HostBatch& batch, int64_t layers, int64_t experts, const std::string& words) {
    const std::string said = refusal([&] { replay.check(batch, layers, experts); });
    EXPECT_NE(said.find(words), std::string::npos) << said;
  };
  expect(rows_of(a), 2, 4, "no step 5, layer 1, row 7 of the stream, position 0");
  expect(rows_of(batch_of({7}, {2})), 1, 4, "position 2; debug.routing_replay");
  expect(rows_of(batch_of({8}, {0})), 1, 4, "row 8");
  expect(rows_of(a), 1, 3,
         "names expert 3 at step 5, layer 0, row 7 of the stream, position 1; the model has 3");
  replay.set_step(6);
  expect(rows_of(a), 1, 4, "no step 6");
  std::vector<int32_t> got(2);
  EXPECT_THROW((void)replay.replay(a, 0, got), InternalError);
}

// A step that is computed once more is recorded once, as it was the last time.
TEST(RouterReplay, KeepsTheLastTryOfAStep) {
  const TempFolder folder;
  const Batch a = batch_of({1}, {0});
  {
    RouterReplayRecorder recorder(folder.path(), owner_of(1, 0, 2));
    recorder.begin_step(0);
    recorder.record(a, 0, {4, 5});
    recorder.begin_step(0);
    recorder.record(a, 0, {6, 7});
    recorder.end_step();
    recorder.begin_step(1);
    recorder.record(a, 0, {1, 2});  // and then the run ended
  }
  EXPECT_EQ(std::filesystem::file_size(folder.path() + "/routing-1-0.bin"),
            routing_first_line(owner_of(1, 0, 2)).size() + 32U + 2U + 32U);
  RouterReplayReader replay(folder.path(), 2);
  std::vector<int32_t> got(2);
  ASSERT_TRUE(replay.replay(a, 0, got));
  EXPECT_EQ(got, (std::vector<int32_t>{6, 7}));
}

TEST(RouterReplay, RefusesAnotherK) {
  const TempFolder folder;
  {
    RouterReplayRecorder recorder(folder.path(), owner_of(1, 3, 2, 4));
    recorder.begin_step(0);
    recorder.record(batch_of({1}, {0}), 0, {4, 5});
    recorder.end_step();
  }
  const std::string said = refusal([&] { const RouterReplayReader replay(folder.path(), 1); });
  EXPECT_NE(said.find("num_experts_per_tok 2, not 1"), std::string::npos) << said;
}

// One token of one step, of one layer.
void record_step(RouterReplayRecorder& recorder, int64_t step, int64_t sample, int32_t expert) {
  recorder.begin_step(step);
  recorder.record(batch_of({sample}, {0}), 0, {expert});
  recorder.end_step();
}

int32_t replayed(RouterReplayReader& replay, int64_t step, int64_t sample) {
  std::vector<int32_t> got(1, -1);
  replay.set_step(step);
  replay.check(rows_of(batch_of({sample}, {0})), 1, 256);
  EXPECT_TRUE(replay.replay(batch_of({sample}, {0}), 0, got));
  return got[0];
}

// Launch 1 has steps 0 to 2 on two ranks; launch 2 went on behind step 0 on one, and was killed in step 2.
TEST(RouterReplay, TakesEachStepFromTheLastLaunchThatHasAllOfIt) {
  const TempFolder folder;
  for (int rank = 0; rank < 2; ++rank) {
    RouterReplayRecorder recorder(folder.path(), owner_of(1, rank, 1, 2));
    for (int64_t step = 0; step < 3; ++step)
      record_step(recorder, step, rank, static_cast<int32_t>(10 * step));
    if (rank == 0) record_step(recorder, 3, rank, 30);  // the other rank has not finished it
  }
  {
    RouterReplayRecorder recorder(folder.path(), owner_of(2, 0, 1));
    recorder.begin_step(1);
    recorder.record(batch_of({0, 1}, {0, 0}), 0, {111, 112});
    recorder.end_step();
    record_step(recorder, 2, 0, 120);
  }
  std::filesystem::resize_file(folder.path() + "/routing-2-0.bin",
                               std::filesystem::file_size(folder.path() + "/routing-2-0.bin") - 1);
  RouterReplayReader replay(folder.path(), 1);
  EXPECT_EQ(replayed(replay, 0, 0), 0);
  EXPECT_EQ(replayed(replay, 1, 0), 111);
  EXPECT_EQ(replayed(replay, 1, 1), 112);
  EXPECT_EQ(replayed(replay, 2, 0), 20);
  EXPECT_EQ(replayed(replay, 2, 1), 20);
  EXPECT_NE(refusal([&] { (void)replayed(replay, 3, 0); }).find("no step 3"), std::string::npos);
  // A launch whose first line is not whole has recorded nothing.
  std::ofstream(folder.path() + "/routing-3-0.bin") << "pesc routing 1 run aaa";
  RouterReplayReader again(folder.path(), 1);
  EXPECT_EQ(replayed(again, 1, 0), 111);
}

TEST(RouterReplay, RefusesMixturesByName) {
  const auto expect = [](const TempFolder& folder, const std::vector<std::string>& words) {
    const std::string said = refusal([&] { const RouterReplayReader replay(folder.path(), 1); });
    for (const std::string& word : words)
      EXPECT_NE(said.find(word), std::string::npos) << word << "\n" << said;
  };
  const TempFolder runs;
  { const RouterReplayRecorder one(runs.path(), owner_of(1, 0, 1)); }
  { const RouterReplayRecorder two(runs.path(), owner_of(2, 0, 1, 1, kOtherRun)); }
  expect(runs, {runs.path(), "two runs", "routing-1-0.bin", kRun, "routing-2-0.bin", kOtherRun});

  const TempFolder launches;
  { const RouterReplayRecorder one(launches.path(), owner_of(1, 0, 1, 2)); }
  { const RouterReplayRecorder two(launches.path(), owner_of(1, 1, 1, 4)); }
  expect(launches, {"under one number", "of 2 ranks", "of 4"});

  const TempFolder renamed;
  { const RouterReplayRecorder one(renamed.path(), owner_of(1, 0, 1)); }
  std::filesystem::rename(renamed.path() + "/routing-1-0.bin", renamed.path() + "/routing-7-0.bin");
  expect(renamed, {"routing-7-0.bin", "recorded as routing-1-0.bin"});

  const TempFolder older;
  std::ofstream(older.path() + "/routing-1-0.bin") << std::string(34, '\0');
  expect(older, {"routing-1-0.bin", "does not say which run"});
}

TEST(RouterReplay, AFolderHoldsTheRecordOfOneRun) {
  const auto refused = [](const std::string& folder, const std::string& run) -> std::string {
    try {
      check_routing_folder(folder, run);
    } catch (const UsageError& e) {
      return e.what();
    }
    return "";
  };
  const TempFolder folder;
  EXPECT_EQ(refused(folder.path() + "/none", kRun), "");
  EXPECT_EQ(refused(folder.path(), kRun), "");
  { const RouterReplayRecorder recorder(folder.path(), owner_of(1, 0, 1)); }
  EXPECT_EQ(refused(folder.path(), kRun), "");  // a later launch of the run
  { const RouterReplayRecorder recorder(folder.path(), owner_of(2, 0, 1)); }
  const std::string said = refused(folder.path(), kOtherRun);
  for (const std::string& word : {folder.path(), kRun, kOtherRun, std::string("debug.routing_record")})
    EXPECT_NE(said.find(word), std::string::npos) << said;
  // Nothing is written over, not even where two begin at the same time.
  EXPECT_THROW(RouterReplayRecorder(folder.path(), owner_of(2, 0, 1, 1, kOtherRun)), UsageError);
  std::ofstream(folder.path() + "/routing-9-0.bin") << std::string(34, '\0');
  EXPECT_NE(refused(folder.path(), kRun).find("routing-9-0.bin"), std::string::npos);
}

}  // namespace
}  // namespace pesc
