// A folder in the published form goes in and comes out again with the same bits.
#include <gtest/gtest.h>

#include <algorithm>

#include "model/parameters.h"
#include "ops/core/arena.h"
#include "parallel/mesh.h"
#include "runtime/checkpoint/store.h"
#include "runtime/export/export_tensors.h"
#include "runtime/hf/config_json.h"
#include "runtime/hf/pesc_folder.h"
#include "tests/runtime/checkpoint/thread_communicator.h"
#include "tests/runtime/filesystem/faulty_filesystem.h"

namespace pesc::testing {
namespace {

TEST(PublishedGolden, ComesOutAsItWentIn) {
  const std::string path = std::string(PESC_SOURCE_DIR) + "/tests/end_to_end/camelidae";
  const ModelConfig model = read_model_config(path);
  const FolderExperts experts = *read_folder_experts(path, Links::kInside);
  PescConfig pesc;
  pesc.lora = {.r = 2, .lora_alpha = 4, .lora_dropout = 0, .target_modules = {Linear::kQ, Linear::kDown}};
  pesc.moe = {.num_experts = experts.num_experts,
              .num_experts_per_tok = experts.num_experts_per_tok,
              .adapter_dim = experts.adapter_dim,
              .adapter_scaling = experts.adapter_scaling};
  HfFolder folder(path);

  // What a run begins with.
  Stream stream((Device()));
  Arena weights("weights", Device{}, int64_t{1} << 22),
      compute("compute weights", Device{}, int64_t{1} << 20);
  ModelParameters parameters(model, pesc, Mesh(1, 0, 1, 1), DType::kF32, {weights, compute, nullptr});
  parameters.initialise(stream, &folder, 1, 0.02);
  std::vector<TrainableTensor> tensors;
  for (const Parameter& p : parameters.all())
    if (p.trainable) tensors.push_back({p.spec, p.master, {}, {}});
  MemoryFileSystem files;
  files.create_directory("run");
  ThreadCommunicator::Group group(1);
  ThreadCommunicator world(group, 0);
  CheckpointStore store(files, "run", {});
  const LoadedCheckpoint checkpoint =
      open_checkpoint(files, world, store.save(world, stream, {}, tensors, 1).directory);

  ExportTensors exported(model, pesc, &folder, files, checkpoint, stream);
  std::vector<SafetensorsWriteEntry> entries = exported.dense(DType::kF32);
  std::ranges::move(exported.moe_adapters(DType::kF32, DType::kF32), std::back_inserter(entries));
  const SafetensorsFile published(path + "/model.safetensors");
  EXPECT_EQ(entries.size(), published.header().tensors.size());
  for (const SafetensorsWriteEntry& entry : entries) {
    const SafetensorsEntry& want = published.at(entry.name);
    EXPECT_EQ(entry.shape, want.shape) << entry.name;
    std::vector<std::byte> bytes;
    entry.produce(
        [&](std::span<const std::byte> piece) { bytes.insert(bytes.end(), piece.begin(), piece.end()); });
    EXPECT_TRUE(std::ranges::equal(bytes, published.bytes(want))) << entry.name;
  }
}

}  // namespace
}  // namespace pesc::testing
