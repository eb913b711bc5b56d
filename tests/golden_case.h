// A reference case of golden_check, read from its folder: see tests/goldens/README.md.
#pragma once

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/hf_names.h"
#include "runtime/hf/config_json.h"
#include "runtime/hf/dtype_convert.h"
#include "runtime/hf/safetensors.h"
#include "runtime/optimizer.h"

namespace pesc {

// Tensors of a safetensors file on the host.
class Expected {
 public:
  explicit Expected(const std::string& path) : file_(path) {}
  [[nodiscard]] std::vector<float> floats(const std::string& name) const {
    const SafetensorsEntry& e = file_.at(name);
    std::vector<float> out(static_cast<size_t>(e.bytes()) /
                           static_cast<size_t>(dtype_bytes(e.dtype.value())));
    convert_to_f32(e.dtype.value(), file_.bytes(e), out.data());
    return out;
  }
  [[nodiscard]] std::vector<int32_t> ints(const std::string& name) const {
    const SafetensorsEntry& e = file_.at(name);
    if (e.dtype == DType::kI32) return raw<int32_t>(e);
    if (e.dtype != DType::kI64) throw DataError(str_cat(file_.path(), ": tensor ", name, " is not I32"));
    const std::vector<int64_t> wide = raw<int64_t>(e);
    return {wide.begin(), wide.end()};
  }
  [[nodiscard]] const SafetensorsHeader& header() const { return file_.header(); }
  [[nodiscard]] const SafetensorsEntry& entry(const std::string& name) const { return file_.at(name); }

 private:
  template <class T>
  [[nodiscard]] std::vector<T> raw(const SafetensorsEntry& e) const {
    std::vector<T> out(static_cast<size_t>(e.bytes()) / sizeof(T));
    std::memcpy(out.data(), file_.bytes(e).data(), static_cast<size_t>(e.bytes()));
    return out;
  }
  SafetensorsFile file_;
};

struct Case {
  ModelConfig model;
  PescConfig pesc;
  AdamWConfig adamw;
  double lr = 0;
  int64_t steps = 0, batch = 0, seq = 0;
  std::vector<int32_t> ids, labels;
};

template <class T>
T field(const nlohmann::json& json, const char* name, const std::string& folder) {
  if (!json.contains(name)) throw DataError(str_cat(folder, "/case.json: no field '", name, "'"));
  if (!json.at(name).is_number())
    throw DataError(str_cat(folder, "/case.json: '", name, "' is not a number"));
  return json.at(name).get<T>();
}

inline Case read_case(const std::string& folder, const Expected& expected, const Expected& params) {
  std::ifstream in(folder + "/case.json");
  if (!in) throw DataError(folder + "/case.json: cannot be read");
  const nlohmann::json json = nlohmann::json::parse(in, nullptr, false);
  if (!json.is_object()) throw DataError(folder + "/case.json: is not a JSON object");
  Case c;
  c.model = read_model_config(folder);
  c.pesc.mode = TrainMode::kPesc;
  for (int l = 0; l < kLinears; ++l) {
    const auto linear = static_cast<Linear>(l);
    if (params.header().find(hf::lora_a(0, linear)) != nullptr) c.pesc.lora.target_modules.push_back(linear);
  }
  if (!c.pesc.lora.target_modules.empty()) {
    c.pesc.lora.r = field<int64_t>(json, "r", folder);
    c.pesc.lora.lora_alpha = field<double>(json, "lora_alpha", folder);
  }
  c.pesc.moe.num_experts = field<int64_t>(json, "num_experts", folder);
  c.pesc.moe.num_experts_per_tok = field<int64_t>(json, "num_experts_per_tok", folder);
  c.pesc.moe.adapter_dim = field<int64_t>(json, "adapter_dim", folder);
  c.pesc.moe.adapter_scaling = field<double>(json, "adapter_scaling", folder);
  c.pesc.moe.router_aux_loss_coef = field<double>(json, "router_aux_loss_coef", folder);
  c.adamw.weight_decay = field<double>(json, "weight_decay", folder);
  c.adamw.clip_norm = field<double>(json, "max_grad_norm", folder);
  c.lr = field<double>(json, "learning_rate", folder);
  c.steps = field<int64_t>(json, "max_steps", folder);
  if (expected.entry("curve.ce_aux_gradnorm").shape != std::vector<int64_t>{c.steps, 3})
    throw DataError(str_cat(folder, ": curve.ce_aux_gradnorm is not [", c.steps, ", 3], as case.json says"));
  const SafetensorsEntry& ids = expected.entry("input_ids");
  if (ids.shape.size() != 2) throw DataError("input_ids is not [batch, seq]");
  c.batch = ids.shape[0];
  c.seq = ids.shape[1];
  c.ids = expected.ints("input_ids");
  c.labels = expected.ints("labels");
  if (c.ids.size() != c.labels.size()) throw DataError("input_ids and labels differ in size");
  for (const auto* list : {&c.ids, &c.labels}) {
    for (const int32_t id : *list) {
      const bool fits = id < c.model.vocab_size && (id >= 0 || (list == &c.labels && id == -100));
      if (!fits) throw DataError(str_cat("expected.safetensors: token ", id, " of ", c.model.vocab_size));
    }
  }
  if (c.model.sliding_window > 0 && c.seq > c.model.sliding_window) {
    throw UsageError(str_cat("sequences of ", c.seq, " tokens with a sliding window of ",
                             c.model.sliding_window, ": sliding windows are not supported"));
  }
  return c;
}

}  // namespace pesc
