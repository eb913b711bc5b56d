// The copy of a checkpoint from a GPU: what is enqueued on the stream after hold() is not in it, however much
// the copies have to do still, and the host does not wait for them.
#include <gtest/gtest.h>

#include <vector>

#include "ops/core/arena.h"
#include "runtime/checkpoint/shard.h"
#include "runtime/checkpoint/store.h"
#include "tests/runtime/checkpoint/thread_communicator.h"
#include "tests/runtime/checkpoint/trainable_set.h"
#include "tests/runtime/filesystem/faulty_filesystem.h"

namespace pesc {
namespace {

using testing::MemoryFileSystem;
using testing::state_at;

constexpr int64_t kRows = 4096, kCols = 1024;  // 16 MiB
constexpr Device kGpu{DeviceKind::kCuda};

class SnapshotGpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!cuda::built() || cuda::device_count() == 0) GTEST_SKIP() << "no GPU test: there is none here";
  }
};

TEST_F(SnapshotGpuTest, WhatComesAfterHoldIsNotInTheCopy) {
  constexpr int kTensors = 8;
  Stream stream(kGpu);
  Arena arena("test", kGpu, (kTensors + 1) * kRows * kCols * 4);
  std::vector<Tensor> tensors;
  for (int i = 0; i < kTensors; ++i) tensors.push_back(arena.allocate(kRows, kCols));
  const auto fill = [&](float value) {
    for (const Tensor& t : tensors) {
      const std::vector<float> values(static_cast<size_t>(t.size()), value);
      copy_from_host(stream, values.data(), t);
    }
  };
  const auto bytes = static_cast<size_t>(tensors[0].bytes());
  auto* host = static_cast<std::byte*>(host_allocate(kGpu, "test", static_cast<int64_t>(kTensors * bytes)));
  HostCopies copies;
  for (int round = 0; round < 3; ++round) {
    fill(static_cast<float>(round));
    copies.wait_stream(stream);
    for (size_t i = 0; i < kTensors; ++i) copies.copy(tensors[i], host + i * bytes);
    copies.end();
    copies.wait(stream);
    fill(-1.0F);  // by work on the stream, which waits by itself
    copies.synchronize();
    const auto* values = reinterpret_cast<const float*>(host);
    int64_t wrong = 0;
    for (int64_t i = 0; i < kTensors * kRows * kCols; ++i)
      wrong += values[i] != static_cast<float>(round) ? 1 : 0;
    EXPECT_EQ(wrong, 0) << "round " << round;
  }
  host_release(kGpu, host);
}

// Rows that stand apart come out packed.
TEST_F(SnapshotGpuTest, StridedRowsArePacked) {
  Stream stream(kGpu);
  Arena arena("test", kGpu, 1 << 20);
  const Tensor all = arena.allocate(6, 10);
  std::vector<float> values(60);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  copy_from_host(stream, values.data(), all);
  Tensor part = all;
  part.cols = 4;
  auto* host = static_cast<float*>(host_allocate(kGpu, "test", part.bytes()));
  HostCopies copies;
  copies.wait_stream(stream);
  copies.copy(part, host);
  copies.end();
  copies.synchronize();
  for (int64_t r = 0; r < 6; ++r)
    for (int64_t c = 0; c < 4; ++c) EXPECT_EQ(host[r * 4 + c], static_cast<float>(10 * r + c));
  host_release(kGpu, host);
}

TEST_F(SnapshotGpuTest, ASaveTakesItsCopyFromTheGpu) {
  Stream stream(kGpu);
  Arena arena("test", kGpu, 3 * kRows * kCols * 4);
  ShardSpec spec{.name = "t", .global_rows = kRows, .global_cols = kCols};
  spec.rows = kRows;
  spec.cols = kCols;
  spec.replicas = 1;
  const Tensor value = arena.allocate(kRows, kCols), first = arena.allocate(kRows, kCols),
               second = arena.allocate(kRows, kCols);
  const std::vector<float> saved(static_cast<size_t>(value.size()), 2.5F);
  const std::vector<float> later(saved.size(), 7.0F);
  for (const Tensor& t : {value, first, second}) copy_from_host(stream, saved.data(), t);
  MemoryFileSystem files;
  files.create_directory("run");
  const std::vector<TrainableTensor> tensors{{spec, value, first, second}};
  for (const std::string& error : testing::run_ranks(1, [&](Communicator& world) {
         CheckpointStore store(files, "run", {});
         store.reserve(kGpu, tensors);
         PendingSave save = store.begin(world, stream, state_at(3), tensors, 1);
         save.copy();
         save.wait(stream);
         for (const Tensor& t : {value, first, second}) copy_from_host(stream, later.data(), t);
         save.write();
         save.exchange(world);
         save.commit();
         EXPECT_EQ(save.finish(world).directory, "run/step-3");
         store.load(open_checkpoint(files, world, "run/step-3"), stream, tensors);
       }))
    EXPECT_EQ(error, "");
  for (const Tensor& t : {value, first, second}) {
    std::vector<float> got(saved.size());
    copy_to_host(stream, t, got.data());
    EXPECT_EQ(got, saved);
  }
}

}  // namespace
}  // namespace pesc
