// Saving on one layout and loading on any other; who writes and who reads which bytes. Ranks are threads
// here, so that every number of them can be tried; store_test.cc does the same over MPI.
#include <gtest/gtest.h>

#include <algorithm>
#include <mutex>
#include <vector>

#include "runtime/checkpoint/manifest.h"
#include "runtime/checkpoint/shard.h"
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

void save(FileSystem& files, Layout layout, int64_t big_rows = 3) {
  files.create_directory("run");
  const auto errors = run_ranks(layout.world, [&](Communicator& world) {
    Stream stream{Device{}};
    TrainableSet set(layout, world.rank(), big_rows);
    set.fill(10);
    CheckpointState state = state_at(10);
    state.tp = layout.tp;
    state.ep = layout.ep;
    CheckpointStore(files, "run", {}).save(world, stream, state, set.tensors(), 1);
  });
  for (const std::string& error : errors) ASSERT_EQ(error, "");
}

LoadedCheckpoint open(FileSystem& files) {
  LoadedCheckpoint checkpoint;
  const auto errors =
      run_ranks(1, [&](Communicator& world) { checkpoint = open_checkpoint(files, world, "run/step-10"); });
  EXPECT_EQ(errors[0], "");
  return checkpoint;
}

TEST(ReshardTest, AnyLayoutLoadsOnAnyOther) {
  std::vector<Layout> layouts;
  for (const int world : {1, 2, 4, 8})
    for (int tp = 1; tp <= world; tp *= 2)
      for (int ep = 1; ep <= world; ep *= 2) layouts.push_back({world, tp, ep});
  layouts.push_back({3, 3, 1});
  layouts.push_back({6, 3, 2});
  for (const Layout& from : layouts) {
    MemoryFileSystem memory;
    save(memory, from);
    const LoadedCheckpoint checkpoint = open(memory);
    EXPECT_EQ(checkpoint.world, from.world);
    EXPECT_EQ(checkpoint.state.tp, from.tp);
    EXPECT_EQ(checkpoint.state.ep, from.ep);
    for (const Layout& to : layouts) {
      SCOPED_TRACE(str_cat("from ", from.world, "/tp", from.tp, "/ep", from.ep, " to ", to.world, "/tp",
                           to.tp, "/ep", to.ep));
      for (int rank = 0; rank < to.world; ++rank) {
        Stream stream{Device{}};
        TrainableSet set(to, rank);
        set.clear();
        load_checkpoint(memory, checkpoint, stream, set.tensors());
        ASSERT_EQ(set.differences(10), 0);
      }
    }
  }
}

TEST(ReshardTest, EachRankReadsOnlyItsOwnBytes) {
  MemoryFileSystem memory;
  save(memory, {4, 2, 4});
  const LoadedCheckpoint checkpoint = open(memory);
  for (const Layout& to : {Layout{4, 2, 4}, Layout{8, 4, 2}, Layout{1, 1, 1}}) {
    for (int rank = 0; rank < to.world; ++rank) {
      FaultyFileSystem counted(memory);
      Stream stream{Device{}};
      TrainableSet set(to, rank);
      load_checkpoint(counted, checkpoint, stream, set.tensors());
      EXPECT_EQ(counted.bytes_read(), set.bytes());
    }
  }
}

TEST(ReshardTest, ReplicasAreWrittenOnceAndTheWorkIsSpread) {
  MemoryFileSystem memory;
  constexpr int64_t kBigRows = 20000;  // 5 MB
  save(memory, {4, 2, 2}, kBigRows);
  const LoadedCheckpoint checkpoint = open(memory);
  const int64_t whole = TrainableSet({1, 1, 1}, 0, kBigRows).bytes();
  int64_t data = 0, least = whole, most = 0;
  for (const auto& tensor : checkpoint.manifest->tensors())
    for (const auto& piece : tensor.pieces()) data += piece.bytes();
  EXPECT_EQ(data, whole);
  ASSERT_EQ(checkpoint.manifest->files_size(), 4);
  for (const auto& file : checkpoint.manifest->files()) {
    least = std::min(least, file.size());
    most = std::max(most, file.size());
  }
  EXPECT_LT(most - least, whole / 20);
  EXPECT_GT(checkpoint.manifest->files(0).block_checksums_size(), 0);
  EXPECT_EQ(checkpoint.manifest->files(0).block_checksums_size(),
            checksum_blocks(checkpoint.manifest->files(0).size()));
}

TEST(ReshardTest, RowsToWriteAreDisjointAndComplete) {
  for (const int64_t rows : {0, 1, 2, 5, 1000, 4096, 100003}) {
    for (const int replicas : {1, 2, 3, 7, 64}) {
      for (const char* name : {"a", "b", "layers.3.q_proj.lora_A"}) {
        ShardSpec spec{.name = name,
                       .global_rows = rows,
                       .global_cols = 64,
                       .rows = rows,
                       .cols = 64,
                       .replicas = replicas};
        std::vector<int> times(static_cast<size_t>(rows), 0);
        for (spec.replica = 0; spec.replica < replicas; ++spec.replica) {
          const Range mine = rows_to_write(spec);
          for (int64_t r = mine.begin; r < mine.end; ++r) ++times[static_cast<size_t>(r)];
        }
        EXPECT_EQ(std::count(times.begin(), times.end(), 1), rows) << name << ' ' << rows << ' ' << replicas;
      }
    }
  }
}

TEST(ReshardTest, MissingTensorsAndOtherShapesAreNamed) {
  MemoryFileSystem memory;
  save(memory, {1, 1, 1});
  const LoadedCheckpoint checkpoint = open(memory);
  Stream stream{Device{}};
  const auto error_with = [&](auto change) -> std::string {
    TrainableSet set({1, 1, 1}, 0);
    change(set.tensors()[0]);
    try {
      load_checkpoint(memory, checkpoint, stream, set.tensors());
    } catch (const DataError& error) {
      return error.what();
    }
    return "no error";
  };
  const std::string missing = error_with([](TrainableTensor& t) { t.spec.name = "gate.router"; });
  EXPECT_NE(missing.find("'gate.router' (param) is not in it"), std::string::npos) << missing;
  const std::string shape = error_with([](TrainableTensor& t) { t.spec.global_rows = 16; });
  EXPECT_NE(shape.find("'router' (param) has shape [8, 12] in it and [16, 12] here"), std::string::npos)
      << shape;
}

TEST(ReshardTest, AbsentMomentsAreNeitherSavedNorLoaded) {
  MemoryFileSystem memory;
  memory.create_directory("run");
  run_ranks(1, [&](Communicator& world) {
    Stream stream{Device{}};
    TrainableSet set({1, 1, 1}, 0);
    for (TrainableTensor& t : set.tensors()) t.exp_avg = t.exp_avg_sq = {};
    CheckpointStore(memory, "run", {}).save(world, stream, state_at(10), set.tensors(), 1);
  });
  const LoadedCheckpoint checkpoint = open(memory);
  for (const auto& tensor : checkpoint.manifest->tensors())
    EXPECT_EQ(tensor.kind(), proto::TensorKind::PARAM);
  Stream stream{Device{}};
  TrainableSet set({1, 1, 1}, 0);
  EXPECT_THROW(load_checkpoint(memory, checkpoint, stream, set.tensors()), DataError);
}

TEST(ReshardTest, PiecesThatDoNotCoverAreNeverCommitted) {
  MemoryFileSystem memory;
  memory.create_directory("run");
  const auto errors = run_ranks(2, [&](Communicator& world) {
    Stream stream{Device{}};
    TrainableSet set({2, 2, 1}, 0);  // both ranks claim to be rank 0
    CheckpointStore(memory, "run", {}).save(world, stream, state_at(10), set.tensors(), 1);
  });
  EXPECT_NE(errors[0].find("not saved"), std::string::npos);
  EXPECT_EQ(errors[0], errors[1]);
  EXPECT_TRUE(memory.list("run").empty());
}

TEST(ReshardTest, ShardsAreOrdinarySafetensors) {
  MemoryFileSystem memory;
  save(memory, {2, 2, 2});
  const auto& bytes = memory.contents("run/step-10/shard-00001.safetensors");
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  ASSERT_LT(length, bytes.size());
  EXPECT_EQ(length % 8, 0U);
  const std::string header(reinterpret_cast<const char*>(bytes.data()) + 8, length);
  EXPECT_EQ(header[0], '{');
  EXPECT_NE(header.find(R"("param:lora_a@0,20":{"data_offsets":[)"), std::string::npos) << header;
  EXPECT_NE(header.find(R"("param:lora_a@0,20":"[4, 40]@0,20")"), std::string::npos) << header;
}

TEST(CheckBaseTest, AnotherDigestIsRefusedAnotherPathIsNoted) {
  const CheckpointState saved = state_at(10);
  EXPECT_EQ(check_base(saved, "models/base", "0123abcd"), "");
  EXPECT_NE(check_base(saved, "elsewhere", "0123abcd").find("models/base"), std::string::npos);
  EXPECT_THROW((void)check_base(saved, "models/base", "ffff"), DataError);
}

}  // namespace
}  // namespace pesc
