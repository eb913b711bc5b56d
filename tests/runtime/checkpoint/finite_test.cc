// What is saved is finite.
#include "runtime/checkpoint/finite.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "runtime/checkpoint/store.h"
#include "tests/runtime/checkpoint/thread_communicator.h"
#include "tests/runtime/checkpoint/trainable_set.h"
#include "tests/runtime/filesystem/faulty_filesystem.h"

namespace pesc {
namespace {

using testing::Layout;
using testing::MemoryFileSystem;
using testing::run_ranks;
using testing::state_at;
using testing::TrainableSet;

constexpr float kInf = std::numeric_limits<float>::infinity();

TEST(FiniteTest, TheFirstNonFiniteElementIsFoundAnywhere) {
  std::vector<float> values(10000, std::numeric_limits<float>::max());
  values[1] = std::numeric_limits<float>::denorm_min();
  values[2] = -std::numeric_limits<float>::max();
  const auto bytes = std::as_bytes(std::span(values));
  EXPECT_EQ(first_not_finite(bytes), -1);
  EXPECT_EQ(first_not_finite({}), -1);
  for (const float bad : {kInf, -kInf, NAN, -NAN}) {
    for (const size_t at : {0U, 1U, 4095U, 4096U, 9999U}) {
      const float before = values[at];
      values[at] = bad;
      EXPECT_EQ(first_not_finite(bytes), static_cast<int64_t>(at));
      EXPECT_FALSE(std::isfinite(float_at(bytes, static_cast<int64_t>(at))));
      values[9999] = NAN;  // the first is told
      EXPECT_EQ(first_not_finite(bytes), static_cast<int64_t>(at));
      values[9999] = std::numeric_limits<float>::max();
      values[at] = before;
    }
  }
}

// One element on the last rank that holds it: no rank commits, all end with the same words, and what was
// there stays.
TEST(FiniteTest, AStateThatIsNotFiniteIsNotSaved) {
  constexpr Layout kLayout{4, 2, 4};
  for (const char* name : {"grid", "experts.7.down", "big"}) {
    for (const int kind : {0, 1, 2}) {
      SCOPED_TRACE(str_cat(name, ' ', kind));
      MemoryFileSystem files;
      files.create_directory("run");
      const auto errors = run_ranks(kLayout.world, [&](Communicator& world) {
        Stream stream{Device{}};
        TrainableSet set(kLayout, world.rank());
        CheckpointStore store(files, "run", {});
        set.fill(5);
        store.save(world, stream, state_at(5), set.tensors(), 1);
        for (const TrainableTensor& t : set.tensors())
          if (t.spec.name == name)
            (kind == 0 ? t.master : kind == 1 ? t.exp_avg : t.exp_avg_sq).f32()[1] = kInf;
        store.save(world, stream, state_at(6), set.tensors(), 1);
      });
      const std::string kinds[] = {"(param)", "(exp_avg)", "(exp_avg_sq)"};
      for (const std::string& error : errors) {
        EXPECT_EQ(error, errors[0]);
        EXPECT_NE(error.find(str_cat("'", name, "' ", kinds[kind], " holds inf at row ")), std::string::npos)
            << error;
        EXPECT_NE(error.find("checkpoint of step 6 not saved"), std::string::npos) << error;
      }
      EXPECT_EQ(files.list("run"), std::vector<std::string>{"step-5"});
    }
  }
}

TEST(FiniteTest, ItIsAnInternalErrorWithAllRanks) {
  MemoryFileSystem files;
  files.create_directory("run");
  const auto errors = run_ranks(2, [&](Communicator& world) {
    Stream stream{Device{}};
    TrainableSet set({2, 1, 1}, world.rank());
    set.fill(1);
    set.tensors()[0].master.f32()[0] = NAN;
    CheckpointStore store(files, "run", {});
    EXPECT_THROW(store.save(world, stream, state_at(6), set.tensors(), 1), InternalError);
  });
  for (const std::string& error : errors) EXPECT_EQ(error, "");
}

}  // namespace
}  // namespace pesc
