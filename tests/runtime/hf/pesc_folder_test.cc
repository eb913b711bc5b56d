#include "runtime/hf/pesc_folder.h"

#include <gtest/gtest.h>

#include <set>

#include "model/hf_names.h"
#include "runtime/hf/config_json.h"
#include "runtime/hf/safetensors_write.h"
#include "tests/runtime/hf/temp_folder.h"

namespace pesc {
namespace {

using nlohmann::json;

json dense() {
  return {{"model_type", "llama"},   {"architectures", {"LlamaForCausalLM"}},
          {"vocab_size", 40},        {"hidden_size", 16},
          {"intermediate_size", 24}, {"num_hidden_layers", 2},
          {"num_attention_heads", 4}};
}
json ours() {
  json c = dense();
  c.update({{"model_type", "pesc_llama"},
            {"architectures", {"PescLlamaForCausalLM"}},
            {"adapter_experts", 6},
            {"adapter_topk", 3},
            {"adapter_dim", 5},
            {"adapter_scaling", 0.25}});
  return c;
}
json published() {
  json c = dense();
  c.update({{"num_experts", 6},
            {"topk", 3},
            {"adapter_dim", 5},
            {"moe_scaling", 0.25},
            {"moe_dtype", "bfloat16"},
            {"output_router_logits", false}});
  return c;
}
PescConfig same() {
  PescConfig p;
  p.moe = {.num_experts = 6, .num_experts_per_tok = 3, .adapter_dim = 5, .adapter_scaling = 0.25};
  return p;
}

TEST(PescFolder, IsToldByTheKeysOfItsForm) {
  EXPECT_FALSE(read_folder_experts(dense(), "F"));
  for (const json& config : {ours(), published()}) {
    const auto experts = read_folder_experts(config, "F");
    ASSERT_TRUE(experts);
    EXPECT_EQ(experts->num_experts, 6);
    EXPECT_EQ(experts->num_experts_per_tok, 3);
    EXPECT_EQ(experts->adapter_dim, 5);
    EXPECT_EQ(experts->adapter_scaling, 0.25);
    EXPECT_EQ(without_experts(config), dense());
    EXPECT_EQ(parse_model_config(config.dump(), "F").hidden_size, 16);
  }
  json wrong = ours();
  wrong["adapter_topk"] = "three";
  EXPECT_NE(data_error([&] { (void)read_folder_experts(wrong, "F"); }).find("adapter_topk"),
            std::string::npos);
}

// A mixture of whole FFNs has some of these keys too.
TEST(PescFolder, IsNoOtherMixtureOfExperts) {
  json other = dense();
  other["num_experts"] = 8;
  other["num_experts_per_tok"] = 2;
  EXPECT_FALSE(read_folder_experts(other, "F"));
  EXPECT_NE(data_error([&] { (void)parse_model_config(other.dump(), "F"); }).find("num_experts"),
            std::string::npos);
}

TEST(PescFolder, IsTrainedAsItIsOrRefused) {
  const FolderExperts folder = *read_folder_experts(ours(), "F");
  EXPECT_NO_THROW(check_folder_experts(folder, same(), "M"));
  const auto refused = [&](const char* first, const char* second, auto change) {
    PescConfig pesc = same();
    change(pesc);
    try {
      check_folder_experts(folder, pesc, "M");
      ADD_FAILURE() << "no error: " << first;
    } catch (const UsageError& error) {
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, first, error.what());
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, second, error.what());
    }
  };
  refused("train.mode LORA", "'M'", [](PescConfig& p) { p.mode = TrainMode::kLora; });
  refused("train.mode FULL", "6 experts", [](PescConfig& p) { p.mode = TrainMode::kFull; });
  refused("moe.num_experts 6", "says 8", [](PescConfig& p) { p.moe.num_experts = 8; });
  refused("moe.num_experts_per_tok 3", "says 2", [](PescConfig& p) { p.moe.num_experts_per_tok = 2; });
  refused("moe.adapter_dim 5", "says 64", [](PescConfig& p) { p.moe.adapter_dim = 64; });
  refused("moe.adapter_scaling 0.25", "says 1", [](PescConfig& p) { p.moe.adapter_scaling = 1; });
}

TEST(PescFolder, MayCallItsExpertsByTheirNumber) {
  const TempFolder temp;
  const std::vector<std::string> names = expert_names(2, 3);
  EXPECT_EQ(std::set(names.begin(), names.end()).size(), 2U * (1 + 2 * 3));
  const std::vector<float> values(4, 1.5F);
  std::vector<SafetensorsWriteEntry> entries;
  for (std::string name : names) {
    const size_t at = name.find("expert_");
    if (at != std::string::npos) name.erase(at, 7);
    entries.push_back(safetensors_entry(name, DType::kF32, {2, 2}, std::as_bytes(std::span(values))));
  }
  (void)write_safetensors(temp / "model.safetensors", entries, {});
  HfFolder folder(temp.path());
  EXPECT_FALSE(folder.has(hf::adapter_up(1, 2)));
  rename_experts(folder, names);
  for (const std::string& name : names) EXPECT_TRUE(folder.has(name)) << name;
  EXPECT_EQ(folder.names().size(), names.size());
  std::vector<float> read(4);
  folder.read({hf::adapter_up(1, 2), 2, 2, 0, 2, 0, 2}, read.data());
  EXPECT_EQ(read, values);
}

}  // namespace
}  // namespace pesc
