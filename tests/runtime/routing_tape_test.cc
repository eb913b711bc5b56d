// Recorded routing is replayed as it was, also across launches, and never with another k.
#include "runtime/routing_tape.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "ops/core/check.h"
#include "tests/runtime/hf/temp_folder.h"

namespace pesc {
namespace {

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

TEST(RoutingTape, ReplaysWhatWasRecordedInEveryLaunch) {
  const TempFolder folder;
  const std::vector<int32_t> first{0, 1, 2, 3, 4, 5}, second{6, 7};
  const Batch a = batch_of({7, 7, 9}, {0, 1, 4});  // two rows
  const Batch b = batch_of({11}, {3});
  {
    RoutingRecorder recorder(folder.path(), 1, 0, 2);
    recorder.begin_step(5);
    recorder.record(a, 0, first);
    recorder.record(a, 1, first);
    recorder.end_step();
    recorder.flush();
  }
  {
    RoutingRecorder recorder(folder.path(), 2, 0, 2);  // a restart of the same rank
    recorder.begin_step(6);
    recorder.record(b, 1, second);
    recorder.end_step();
    recorder.flush();
  }
  RoutingReplay replay(folder.path(), 2);
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
TEST(RoutingTape, SaysBeforeAStepWhatWasNotRecorded) {
  const TempFolder folder;
  const Batch a = batch_of({7, 7}, {0, 1});
  {
    RoutingRecorder recorder(folder.path(), 1, 0, 1);
    recorder.begin_step(5);
    recorder.record(a, 0, {0, 3});
    recorder.end_step();
  }
  RoutingReplay replay(folder.path(), 1);
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
TEST(RoutingTape, KeepsTheLastTryOfAStep) {
  const TempFolder folder;
  const Batch a = batch_of({1}, {0});
  {
    RoutingRecorder recorder(folder.path(), 1, 0, 2);
    recorder.begin_step(0);
    recorder.record(a, 0, {4, 5});
    recorder.begin_step(0);
    recorder.record(a, 0, {6, 7});
    recorder.end_step();
    recorder.begin_step(1);
    recorder.record(a, 0, {1, 2});  // and then the run ended
  }
  EXPECT_EQ(std::filesystem::file_size(folder.path() + "/routing-1-0.bin"), 32U + 2U);
  RoutingReplay replay(folder.path(), 2);
  std::vector<int32_t> got(2);
  ASSERT_TRUE(replay.replay(a, 0, got));
  EXPECT_EQ(got, (std::vector<int32_t>{6, 7}));
}

TEST(RoutingTape, RefusesAnotherK) {
  const TempFolder folder;
  {
    RoutingRecorder recorder(folder.path(), 1, 3, 2);
    recorder.begin_step(0);
    recorder.record(batch_of({1}, {0}), 0, {4, 5});
    recorder.end_step();
  }
  const std::string said = refusal([&] { const RoutingReplay replay(folder.path(), 1); });
  EXPECT_NE(said.find("top_k 2, not 1"), std::string::npos) << said;
}

}  // namespace
}  // namespace pesc
