// Recorded routing is replayed as it was, also across launches, and never with another k.
#include "runtime/routing_tape.h"

#include <gtest/gtest.h>

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

TEST(RoutingTape, ReplaysWhatWasRecordedInEveryLaunch) {
  const TempFolder folder;
  const std::vector<int32_t> first{0, 1, 2, 3, 4, 5}, second{6, 7};
  const Batch a = batch_of({7, 7, 9}, {0, 1, 4});  // two rows
  const Batch b = batch_of({11}, {3});
  {
    RoutingRecorder recorder(folder.path(), 1, 0, 2);
    recorder.set_step(5);
    recorder.record(a, 1, first);
    recorder.flush();
  }
  {
    RoutingRecorder recorder(folder.path(), 2, 0, 2);  // a restart of the same rank
    recorder.set_step(6);
    recorder.record(b, 1, second);
    recorder.flush();
  }
  RoutingReplay replay(folder.path(), 2);
  std::vector<int32_t> got(6);
  replay.set_step(5);
  ASSERT_TRUE(replay.replay(a, 1, got));
  EXPECT_EQ(got, first);
  const Batch part = batch_of({7}, {1});  // another layout's slice
  got.assign(2, -1);
  ASSERT_TRUE(replay.replay(part, 1, got));
  EXPECT_EQ(got, (std::vector<int32_t>{2, 3}));
  EXPECT_THROW(replay.replay(b, 1, got), DataError);  // not in step 5
  EXPECT_THROW(replay.replay(part, 0, got), DataError);
  replay.set_step(6);
  ASSERT_TRUE(replay.replay(b, 1, got));
  EXPECT_EQ(got, second);
}

TEST(RoutingTape, RefusesAnotherK) {
  const TempFolder folder;
  {
    RoutingRecorder recorder(folder.path(), 1, 3, 2);
    recorder.record(batch_of({1}, {0}), 0, {4, 5});
    recorder.flush();
  }
  try {
    RoutingReplay replay(folder.path(), 1);
    FAIL() << "nothing was refused";
  } catch (const DataError& e) {
    EXPECT_NE(std::string(e.what()).find("top_k 2, not 1"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace pesc
