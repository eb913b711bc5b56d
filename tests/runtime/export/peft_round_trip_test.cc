// An adapter folder that an export writes goes in again with the same bits; other adapters are refused by name.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "model/parameters.h"
#include "ops/core/arena.h"
#include "parallel/mesh.h"
#include "runtime/export/export_config.h"
#include "runtime/export/export_tensors.h"
#include "runtime/hf/peft_folder.h"
#include "tests/runtime/export/small_run.h"
#include "tests/runtime/hf/temp_folder.h"

namespace pesc::testing {
namespace {

using nlohmann::json;

std::string config_of(const ModelConfig& model, const PescConfig& pesc) {
  return adapter_config_text(model, pesc, "BASE");
}

// The entries of an adapter and what they hold.
struct Adapter {
  std::vector<SafetensorsWriteEntry> entries;
  std::map<std::string, std::vector<std::byte>> bytes;
};

Adapter exported(ExportTensors& tensors, bool experts) {
  Adapter out;
  out.entries = tensors.lora(DType::kF32, kPeftPrefix);
  if (experts)
    std::ranges::move(tensors.moe_adapters(DType::kF32, DType::kF32, kPeftPrefix),
                      std::back_inserter(out.entries));
  for (const SafetensorsWriteEntry& entry : out.entries) {
    std::vector<std::byte>& bytes = out.bytes[entry.name];
    entry.produce(
        [&](std::span<const std::byte> piece) { bytes.insert(bytes.end(), piece.begin(), piece.end()); });
  }
  return out;
}

// An export of a small run in a folder.
class PeftFolderTest : public ::testing::Test {
 protected:
  void write(const ModelConfig& model, const PescConfig& pesc) {
    SmallRun run(model, pesc);
    SmallBase base;
    ExportTensors tensors(model, pesc, &base, run.files(), run.checkpoint(), run.stream(),
                          {.slice_bytes = 128});
    const Adapter adapter = exported(tensors, pesc.mode == TrainMode::kPesc);
    for (const auto& [name, bytes] : adapter.bytes) bytes_[name] = bytes;
    for (const SafetensorsWriteEntry& entry : adapter.entries) shapes_[entry.name] = entry.shape;
    write_weights();
    config_ = json::parse(config_of(model, pesc));
    write_config();
  }
  void write_weights() {
    std::vector<SafetensorsWriteEntry> entries;
    for (const auto& [name, bytes] : bytes_)
      entries.push_back(safetensors_entry(name, DType::kF32, shapes_.at(name), bytes));
    write_safetensors(folder_ / "adapter_model.safetensors", entries, {{kPeftBaseDigest, "0123"}});
  }
  void write_config() { write_file(folder_ / "adapter_config.json", config_.dump()); }

  template <class Error>
  void refused(const PescConfig& pesc, const std::vector<std::string>& said) {
    try {
      const PeftFolder folder(folder_.path(), model_, pesc);
      ADD_FAILURE() << "no error; expected " << said.front();
    } catch (const Error& error) {
      for (const std::string& word : said)
        EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << word << ": " << error.what();
    }
  }

  const ModelConfig model_ = small_model();
  TempFolder folder_;
  std::map<std::string, std::vector<std::byte>> bytes_;
  std::map<std::string, std::vector<int64_t>> shapes_;
  json config_;
};

TEST_F(PeftFolderTest, ComesOutAsItWentInInEveryFamily) {
  for (const FamilyTraits& traits : kFamilies) {
    for (const TrainMode mode : {TrainMode::kPesc, TrainMode::kLora}) {
      SCOPED_TRACE(traits.model_type);
      const ModelConfig model = small_model(traits.family);
      const PescConfig pesc = small_pesc(mode);
      bytes_.clear();
      shapes_.clear();
      write(model, pesc);
      PeftFolder folder(folder_.path(), model, pesc);
      EXPECT_EQ(folder.has_experts(), mode == TrainMode::kPesc);
      EXPECT_EQ(folder.base(), "BASE");
      EXPECT_EQ(folder.base_digest(), "0123");
      EXPECT_EQ(folder.digest().size(), 32U);

      // What a run begins with, and what comes out of it when it has learned nothing.
      SmallBase dense;
      class Base : public WeightSource {
       public:
        explicit Base(SmallBase& base) : base_(base) {}
        [[nodiscard]] int64_t bytes_read() const override { return 0; }
        [[nodiscard]] bool has(const std::string& name) const override {
          return name.find("lora_") == std::string::npos && name.find("moe_adapter") == std::string::npos;
        }
        void read(const ShardSpec& piece, float* to) override { base_.read(piece, to); }

       private:
        SmallBase& base_;
      } base(dense);
      AdaptedBase source(base, &folder);
      Stream stream((Device()));
      Arena weights("weights", Device{}, int64_t{1} << 21),
          compute("compute weights", Device{}, int64_t{1} << 18);
      ModelParameters parameters(model, pesc, Mesh(1, 0, 1, 1), DType::kF32, {weights, compute, nullptr});
      parameters.initialise(stream, &source, 1, 0.02);
      std::vector<TrainableTensor> trained;
      for (const Parameter& p : parameters.all())
        if (p.trainable) trained.push_back({p.spec, p.master, {}, {}});
      MemoryFileSystem files;
      files.create_directory("run");
      ThreadCommunicator::Group group(1);
      ThreadCommunicator world(group, 0);
      CheckpointStore store(files, "run", {});
      const LoadedCheckpoint checkpoint =
          open_checkpoint(files, world, store.save(world, stream, {}, trained, 1).directory);
      ExportTensors again(model, pesc, &base, files, checkpoint, stream);
      const Adapter out = exported(again, mode == TrainMode::kPesc);
      EXPECT_EQ(out.bytes.size(), bytes_.size());
      for (const auto& [name, bytes] : out.bytes) EXPECT_EQ(bytes, bytes_.at(name)) << name;
    }
  }
}

// q and v of qkv_proj, gate of gate_up_proj.
TEST(PeftOfFusedLinears, IsOneLoraOfAHigherRank) {
  const ModelConfig model = small_model(Family::kPhi3);
  const PescConfig pesc = small_pesc(TrainMode::kLora);
  const json config = json::parse(config_of(model, pesc));
  EXPECT_EQ(config["target_modules"], json::array({"down_proj", "gate_up_proj", "qkv_proj"}));
  EXPECT_EQ(config["rank_pattern"], json({{"qkv_proj", 6}}));
  EXPECT_EQ(config["alpha_pattern"], json({{"qkv_proj", 14}}));
  SmallRun run(model, pesc);
  SmallBase base;
  ExportTensors tensors(model, pesc, &base, run.files(), run.checkpoint(), run.stream(), {.slice_bytes = 64});
  const Adapter adapter = exported(tensors, false);
  const auto floats = [&](const std::string& name) {
    const std::vector<std::byte>& bytes = adapter.bytes.at(kPeftPrefix + name);
    std::vector<float> values(bytes.size() / sizeof(float));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  };
  const std::string layer = "model.layers.1.", qkv = layer + "self_attn.qkv_proj";
  const std::vector<float> a = floats(qkv + ".lora_A.weight"), b = floats(qkv + ".lora_B.weight");
  ASSERT_EQ(a.size(), 6U * 16);
  ASSERT_EQ(b.size(), 32U * 6);  // 16 rows of q, 8 of k, 8 of v
  for (int64_t i = 0; i < 3 * 16; ++i) {
    EXPECT_EQ(a[static_cast<size_t>(i)], value_at(layer + "self_attn.q_proj.lora_A.weight", i));
    EXPECT_EQ(a[static_cast<size_t>(48 + i)], value_at(layer + "self_attn.v_proj.lora_A.weight", i));
  }
  for (int64_t row = 0; row < 32; ++row) {
    for (int64_t k = 0; k < 6; ++k) {
      float want = 0;
      if (row < 16 && k < 3) want = value_at(layer + "self_attn.q_proj.lora_B.weight", row * 3 + k);
      if (row >= 24 && k >= 3)
        want = value_at(layer + "self_attn.v_proj.lora_B.weight", (row - 24) * 3 + k - 3);
      ASSERT_EQ(b[static_cast<size_t>(row * 6 + k)], want) << row << " " << k;
    }
  }
  EXPECT_EQ(floats(layer + "mlp.gate_up_proj.lora_B.weight").size(), 48U * 3);
}

TEST_F(PeftFolderTest, AnotherShapeThanTheExperimentsIsRefused) {
  const PescConfig pesc = small_pesc();
  write(model_, pesc);
  const auto with = [&](auto change) {
    PescConfig other = pesc;
    change(other);
    return other;
  };
  refused<UsageError>(with([](PescConfig& p) { p.lora.r = 4; }), {"rank 3", "lora.r 4", "set lora.r: 3"});
  refused<UsageError>(with([](PescConfig& p) { p.lora.r = 0; }), {"lora.r 0", "set lora.r: 3"});
  refused<UsageError>(with([](PescConfig& p) { p.lora.lora_alpha = 8; }),
                      {"lora_alpha 7", "set lora.lora_alpha: 7"});
  refused<UsageError>(
      with([](PescConfig& p) { p.lora.target_modules.pop_back(); }),
      {"q_proj, v_proj, gate_proj, down_proj", "lora.target_modules are q_proj, v_proj, gate_proj;"});
  refused<UsageError>(with([](PescConfig& p) { p.mode = TrainMode::kLora; }),
                      {"modules_to_save", "train.mode PESC"});
  refused<UsageError>(with([](PescConfig& p) { p.mode = TrainMode::kFull; }), {"train.mode FULL"});
  refused<UsageError>(with([](PescConfig& p) { p.moe.num_experts = 8; }),
                      {"moe.num_experts 4", "set moe.num_experts: 4"});
  refused<UsageError>(with([](PescConfig& p) { p.moe.adapter_dim = 6; }), {"moe.adapter_dim 5"});
  // What no tensor says stands in base/config.json.
  std::filesystem::create_directory(folder_ / "base");
  write_file(folder_ / "base/config.json",
             R"({"adapter_experts": 4, "adapter_topk": 1, "adapter_dim": 5, "adapter_scaling": 0.25})");
  refused<UsageError>(pesc, {"moe.num_experts_per_tok 1", "moe.num_experts_per_tok: 1"});
}

TEST_F(PeftFolderTest, AnotherKindOfAdapterIsRefusedByName) {
  const PescConfig pesc = small_pesc();
  write(model_, pesc);
  const json good = config_;
  const auto with = [&](const char* key, const json& value, const std::vector<std::string>& said) {
    config_ = good;
    config_[key] = value;
    write_config();
    refused<DataError>(pesc, said);
  };
  with("use_dora", true, {"use_dora", "DoRA"});
  with("use_rslora", true, {"use_rslora", "rsLoRA"});
  with("bias", "all", {"bias", "'all'"});
  with("lora_bias", true, {"lora_bias"});
  with("peft_type", "LOHA", {"peft_type", "'LOHA'"});
  with("modules_to_save", {"moe_adapter", "embed_tokens"}, {"modules_to_save", "'embed_tokens'"});
  with("init_lora_weights", "pissa_niter_4", {"init_lora_weights", "pissa"});
  with("layers_to_transform", {0}, {"layers_to_transform"});
  with("a_key_of_tomorrow", 3, {"a_key_of_tomorrow", "not known"});
  with("target_modules", {"q_proj", "v_proj", "gate_proj"}, {"target_modules", "down_proj"});
  with("r", "three", {"r: must be a whole number"});
  // What changes nothing is let pass.
  config_ = good;
  config_["a_key_of_tomorrow"] = false;
  config_["init_lora_weights"] = "gaussian";
  config_["target_modules"] = "a pattern";
  write_config();
  EXPECT_NO_THROW(PeftFolder(folder_.path(), model_, pesc));
}

TEST_F(PeftFolderTest, AnotherBaseOrAnIncompleteFolderIsRefused) {
  const PescConfig pesc = small_pesc();
  write(model_, pesc);
  ModelConfig deeper = model_, wider = model_;
  deeper.num_hidden_layers = 3;
  EXPECT_THROW(PeftFolder(folder_.path(), deeper, pesc), DataError);
  deeper.num_hidden_layers = 1;
  EXPECT_NE(data_error([&] { PeftFolder(folder_.path(), deeper, pesc); }).find("layers.1."),
            std::string::npos);
  wider.hidden_size = 32;
  EXPECT_NE(data_error([&] { PeftFolder(folder_.path(), wider, pesc); }).find("of this base"),
            std::string::npos);
  PeftFolder folder(folder_.path(), model_, pesc);
  std::vector<float> to(3 * 32);
  EXPECT_NE(data_error([&] {
              folder.read({"model.layers.0.self_attn.q_proj.lora_A.weight", 3, 32, 0, 3, 0, 32}, to.data());
            }).find("another base"),
            std::string::npos);
  const std::string lacking = std::string(kPeftPrefix) + "model.layers.1.self_attn.v_proj.lora_B.weight";
  const auto node = bytes_.extract(lacking);
  write_weights();
  refused<DataError>(pesc, {lacking, "lacks"});
  bytes_["base_model.model.model.embed_tokens.lora_A.weight"] = node.mapped();
  shapes_["base_model.model.model.embed_tokens.lora_A.weight"] = shapes_.at(lacking);
  write_weights();
  refused<DataError>(pesc, {"embed_tokens"});
  std::filesystem::remove(folder_ / "adapter_model.safetensors");
  write_file(folder_ / "adapter_model.bin", "x");
  refused<DataError>(pesc, {"adapter_model.bin", "safetensors"});
  std::filesystem::remove(folder_ / "adapter_config.json");
  refused<DataError>(pesc, {"adapter_config.json"});
}

// A LoRA that PEFT itself put on the fused module, and one whose zeros are not zero.
TEST_F(PeftFolderTest, ALoraOfTheFusedModuleIsRefused) {
  const ModelConfig model = small_model(Family::kPhi3);
  const PescConfig pesc = small_pesc(TrainMode::kLora);
  write(model, pesc);
  const json good = config_;
  config_["rank_pattern"] = json::object();
  write_config();
  const auto usage = [&] {
    try {
      PeftFolder(folder_.path(), model, pesc);
    } catch (const UsageError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_NE(usage().find("qkv_proj"), std::string::npos) << usage();
  config_ = good;
  write_config();
  std::vector<std::byte>& b =
      bytes_.at(std::string(kPeftPrefix) + "model.layers.0.self_attn.qkv_proj.lora_B.weight");
  const float one = 1;
  std::memcpy(b.data() + 5 * sizeof(float), &one, sizeof(float));  // row 0 is q's, column 5 is v's
  write_weights();
  const std::string said = data_error([&] { PeftFolder(folder_.path(), model, pesc); });
  EXPECT_NE(said.find("[0, 5]"), std::string::npos) << said;
}

}  // namespace
}  // namespace pesc::testing
