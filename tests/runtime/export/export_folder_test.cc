#include "runtime/export/export_folder.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <span>

#include "runtime/checkpoint/process_identity.h"
#include "runtime/hf/hf_folder.h"
#include "tests/runtime/filesystem/faulty_filesystem.h"
#include "tests/runtime/hf/temp_folder.h"

namespace pesc::testing {
namespace {

std::vector<std::byte> bytes_of(size_t size, int seed) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i)
    bytes[i] = static_cast<std::byte>((i * 7 + static_cast<size_t>(seed)) % 251);
  return bytes;
}

const std::vector<std::byte> kOne = bytes_of(64, 1), kTwo = bytes_of(64, 2), kBig = bytes_of(400, 3);

std::vector<SafetensorsWriteEntry> three_tensors() {
  return {safetensors_entry("one", DType::kF32, {16}, kOne),
          safetensors_entry("big", DType::kF32, {10, 10}, kBig),
          safetensors_entry("two", DType::kF32, {16}, kTwo)};
}

void write_all(FileSystem& files, const std::string& target) {
  ExportFolder folder(files, target);
  folder.add_folder("base");
  folder.add_file("config.json", "{}\n");
  folder.add_file("base/config.json", "{}\n");
  add_weight_files(folder, three_tensors(), 128);
  folder.commit();
}

const std::vector<std::string> kWhole{"base",
                                      "config.json",
                                      "model-00001-of-00003.safetensors",
                                      "model-00002-of-00003.safetensors",
                                      "model-00003-of-00003.safetensors",
                                      "model.safetensors.index.json"};

TEST(ExportFolder, IsThereAfterItsCommit) {
  MemoryFileSystem files;
  write_all(files, "/exports/of/today");
  EXPECT_EQ(files.list("/exports/of"), std::vector<std::string>{"today"});
  EXPECT_EQ(files.list("/exports/of/today"), kWhole);
  EXPECT_EQ(files.list("/exports/of/today/base"), std::vector<std::string>{"config.json"});
  files.crash();  // all of it was synced
  EXPECT_EQ(files.list("/exports/of/today"), kWhole);
  EXPECT_EQ(files.read_all("/exports/of/today/base/config.json", 100), "{}\n");
}

TEST(ExportFolder, NothingIsLeftWithoutACommit) {
  MemoryFileSystem files;
  {
    ExportFolder folder(files, "/exports/out/");
    folder.add_file("config.json", "{}\n");
    EXPECT_EQ(folder.names(), std::vector<std::string>{"config.json"});
    EXPECT_EQ(folder.bytes(), 3);
    EXPECT_FALSE(files.exists("/exports/out"));
  }
  EXPECT_FALSE(files.exists("/exports"));
}

TEST(ExportFolder, NothingIsOverwritten) {
  MemoryFileSystem files;
  files.create_directory("/folder");
  files.create_file("/file")->close();
  for (const std::string target : {"/folder", "/folder/", "/./folder", "folder", "/file", ".", "/", ".."}) {
    EXPECT_THROW(check_absent(files, target), UsageError) << target;
    EXPECT_THROW(ExportFolder(files, target), UsageError) << target;
  }
  EXPECT_EQ(files.list("/"), (std::vector<std::string>{"file", "folder"}));
  // It comes to be there meanwhile.
  ExportFolder late(files, "/late");
  late.add_file("x", "x");
  files.create_directory("/late");
  EXPECT_THROW(late.commit(), UsageError);
  EXPECT_TRUE(files.list("/late").empty());
}

TEST(ExportFolder, AFullDiskLeavesNothing) {
  for (const int64_t room : {0, 2, 50, 200, 700}) {
    MemoryFileSystem disk;
    FaultyFileSystem files(disk);
    files.limit_bytes(room);
    EXPECT_THROW(write_all(files, "/a/out"), IoError) << room;
    EXPECT_FALSE(disk.exists("/a")) << room;
  }
}

// Any operation fails, or the process dies at it and the power is cut.
TEST(ExportFolder, IsAbsentOrWholeWhereverItStops) {
  MemoryFileSystem counted;
  FaultyFileSystem counter(counted);
  write_all(counter, "/out");
  const int64_t operations = counter.operations();
  ASSERT_GT(operations, 20);
  for (int64_t k = 0; k < operations; ++k) {
    for (const bool dies : {false, true}) {
      for (uint64_t seed = 0; seed < 4; ++seed) {
        MemoryFileSystem disk;
        FaultyFileSystem files(disk);
        dies ? files.stop_at(k) : files.fail_at(k, EIO);
        EXPECT_THROW(write_all(files, "/out"), IoError) << k;
        if (dies) disk.crash(seed == 0 ? std::nullopt : std::optional(seed));
        if (disk.exists("/out")) {
          EXPECT_EQ(disk.list("/out"), kWhole) << k;
          EXPECT_EQ(disk.size("/out/model-00002-of-00003.safetensors") % 8, 0);
          EXPECT_EQ(disk.read_all("/out/base/config.json", 100), "{}\n");
        } else if (!dies) {
          EXPECT_TRUE(disk.list("/").empty()) << k;
        }
      }
    }
  }
}

void leave(FileSystem& files, const std::string& folder, const std::string& owner) {
  files.create_directory(folder);
  const auto write = [&](const std::string& name, const std::string& text) {
    const auto file = files.create_file(folder + "/" + name);
    file->append(std::as_bytes(std::span(text.data(), text.size())));
    file->close();
  };
  write("model.safetensors", "half of it");
  if (!owner.empty()) write(".exporting", owner);
}

TEST(ExportFolder, WhatAKilledExportLeftIsRemovedByTheNext) {
  MemoryFileSystem files;
  files.create_directory("/exports");
  ProcessIdentity gone = this_process();
  gone.start += "0";  // another process had this number
  ProcessIdentity elsewhere = this_process();
  elsewhere.host += "2";
  leave(files, "/exports/out.tmp.17", to_string(gone));
  leave(files, "/exports/out.tmp.18", to_string(elsewhere));
  leave(files, "/exports/out.tmp.19", to_string(this_process()));  // it runs
  leave(files, "/exports/out.tmp.20", "");
  leave(files, "/exports/out.tmp.21", "no owner");
  leave(files, "/exports/out.tmp.mine", to_string(gone));
  leave(files, "/exports/out2.tmp.17", to_string(gone));
  write_all(files, "/exports/out");
  EXPECT_EQ(files.list("/exports/out"), kWhole);
  EXPECT_EQ(files.list("/exports"), (std::vector<std::string>{"out", "out.tmp.18", "out.tmp.19", "out.tmp.20",
                                                              "out.tmp.21", "out.tmp.mine", "out2.tmp.17"}));
}

// A process of another host may have the number of this one.
TEST(ExportFolder, WhatHasItsOwnNameIsRemovedOnlyWhereItIsKnownToBeLeft) {
  const std::string mine = "/exports/out.tmp." + std::to_string(::getpid());
  ProcessIdentity gone = this_process(), elsewhere = this_process();
  gone.start += "0";
  elsewhere.host += "2";
  for (const std::string& owner : {to_string(elsewhere), std::string("no owner"), std::string()}) {
    MemoryFileSystem files;
    files.create_directory("/exports");
    leave(files, mine, owner);
    const auto before = files.list(mine);
    try {
      write_all(files, "/exports/out");
      FAIL() << owner;
    } catch (const UsageError& error) {
      EXPECT_NE(std::string(error.what()).find(mine), std::string::npos) << error.what();
    }
    EXPECT_EQ(files.list(mine), before) << owner;
    EXPECT_FALSE(files.exists("/exports/out"));
  }
  MemoryFileSystem files;
  files.create_directory("/exports");
  leave(files, mine, to_string(gone));
  write_all(files, "/exports/out");
  EXPECT_EQ(files.list("/exports"), std::vector<std::string>{"out"});
  EXPECT_EQ(files.list("/exports/out"), kWhole);
}

// As HfFolder, which reads every model folder, sees it.
TEST(WeightFiles, AreReadBackThroughTheirIndex) {
  for (const int64_t limit : {int64_t{1}, int64_t{128}, kShardBytes}) {
    TempFolder temp;
    const std::string out = temp / "out";
    {
      ExportFolder folder(posix_filesystem(), out);
      add_weight_files(folder, three_tensors(), limit);
      folder.commit();
    }
    HfFolder read(out);
    EXPECT_TRUE(read.warnings().empty());
    EXPECT_EQ(folder_has(out, "model.safetensors"), limit == kShardBytes);
    EXPECT_EQ(read.names(), (std::vector<std::string>{"big", "one", "two"}));
    EXPECT_EQ(read.entry("big")->shape, (std::vector<int64_t>{10, 10}));
  }
}

// A tensor that is larger than a shard has one of its own; small ones share.
TEST(WeightFiles, AreOfTheSizeThatWasAskedFor) {
  MemoryFileSystem files;
  ExportFolder folder(files, "/out");
  auto entries = three_tensors();
  std::swap(entries[1], entries[2]);  // one, two, big
  add_weight_files(folder, std::move(entries), 128);
  EXPECT_EQ(folder.names(),
            (std::vector<std::string>{"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                                      "model.safetensors.index.json"}));
  folder.commit();
  const auto index = nlohmann::json::parse(files.read_all("/out/model.safetensors.index.json", 10000));
  EXPECT_EQ(index["metadata"]["total_size"], 528);
  EXPECT_EQ(index["weight_map"]["two"], "model-00001-of-00002.safetensors");
  EXPECT_EQ(index["weight_map"]["big"], "model-00002-of-00002.safetensors");
}

}  // namespace
}  // namespace pesc::testing
