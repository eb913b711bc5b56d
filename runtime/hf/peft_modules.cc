#include "runtime/hf/peft_modules.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "model/families.h"
#include "model/hf_names.h"

namespace pesc {
namespace {

PeftModule module_of(const ModelConfig& model, const LoraConfig& lora, const std::string& name,
                     const std::vector<Linear>& parts) {
  PeftModule out;
  out.name = name;
  for (const Linear linear : parts) {
    const int64_t rows = output_rows(model, linear);
    out.parts.push_back({linear, out.rows, rows, lora.on(linear) ? out.blocks++ : -1});
    out.rows += rows;
  }
  return out;
}

}  // namespace

std::vector<PeftModule> peft_modules(const ModelConfig& model, const LoraConfig& lora, int64_t layer) {
  constexpr std::string_view kWeight = ".weight";
  std::vector<PeftModule> all;
  std::array<bool, kLinears> within{};
  for (const hf::Fused& fused : hf::fused_weights(traits_of(model.family).fused_linears, layer)) {
    for (const Linear part : fused.parts) within.at(static_cast<size_t>(part)) = true;
    all.push_back(
        module_of(model, lora, fused.name.substr(0, fused.name.size() - kWeight.size()), fused.parts));
  }
  for (int i = 0; i < kLinears; ++i) {
    const auto linear = static_cast<Linear>(i);
    if (!within.at(static_cast<size_t>(i)))
      all.push_back(module_of(model, lora, hf::module(layer, linear), {linear}));
  }
  std::erase_if(all, [](const PeftModule& module) { return module.blocks == 0; });
  return all;
}

std::string last_part(const std::string& module) {
  return module.substr(module.rfind('.') + 1);
}

}  // namespace pesc
