// A LoRA adapter in PEFT's form whose values training goes on from (model.adapter): what `pesc export --format PEFT` writes, with
// the routers and adapters of a PESC run, and plain LoRA adapters that PEFT saved. Its tensors have the names by which the model
// asks for them (model/hf_names.h); LoRA of a fused module is read as that of its linears (runtime/hf/peft_modules.h).
//
// Nothing but the slices that are asked for is read, and the zeros of fused modules.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <set>
#include <string>

#include "model/config.h"
#include "model/weight_source.h"
#include "runtime/hf/peft_config.h"
#include "runtime/hf/peft_modules.h"
#include "runtime/hf/safetensors.h"
#include "runtime/hf/tensor_slice.h"

namespace pesc {

// In the metadata of adapter_model.safetensors: weights_part (runtime/base_digest.h) of the base's digest.
inline constexpr const char* kPeftBaseDigest = "pesc_base_digest";
inline constexpr const char* kPeftWeights = "adapter_model.safetensors";

class PeftFolder : public WeightSource {
 public:
  // Throws DataError where the folder is damaged, holds another kind of adapter, lacks a tensor or has one too many; UsageError
  // where the experiment trains another shape (train.mode, lora.r, lora.lora_alpha, lora.target_modules, moe), naming the field.
  PeftFolder(const std::string& folder, const ModelConfig& model, const PescConfig& pesc,
             Links links = Links::kInside);

  [[nodiscard]] int64_t bytes_read() const override { return bytes_read_.load(); }
  [[nodiscard]] bool has(const std::string& name) const override { return places_.contains(name); }
  void read(const ShardSpec& piece, float* to) override;

  [[nodiscard]] const std::string& folder() const { return folder_; }
  [[nodiscard]] bool has_experts() const { return config_.saves_experts; }
  // base_model_name_or_path; may be empty.
  [[nodiscard]] const std::string& base() const { return config_.base; }
  // The digest of the base that it was trained on, as `pesc export` wrote it; else empty.
  [[nodiscard]] std::string base_digest() const;
  // Identifies the adapter: XXH3-128 of the values of its configuration and of its weights. Reads all of it.
  [[nodiscard]] std::string digest() const;

 private:
  struct Place {
    const SafetensorsEntry* entry;
    TensorSlice part;  // of the entry
  };
  void check_mode(const PescConfig& pesc) const;
  void check_targets(const ModelConfig& model, const LoraConfig& lora) const;
  void check_rank(const PeftModule& module, const LoraConfig& lora) const;
  void check_experts(const MoeConfig& moe) const;
  [[nodiscard]] const SafetensorsEntry& matrix(const std::string& name);
  void add_module(const PeftModule& module, int64_t layer, int64_t r);
  void check_zeros(const PeftModule& module, const SafetensorsEntry& b, int64_t r) const;
  void check_left_over(const ModelConfig& model) const;
  // "model.adapter 'FOLDER'"
  [[nodiscard]] std::string named() const;

  std::string folder_;
  Links links_;
  PeftConfig config_;
  SafetensorsFile file_;
  std::map<std::string, Place> places_;  // by the model's name
  std::set<std::string> used_;           // names of the file
  std::atomic<int64_t> bytes_read_{0};
};

// A base with an adapter over it: what the adapter has is read from it, all else from the base.
class AdaptedBase : public WeightSource {
 public:
  // `adapter` may be null. Both outlive this object.
  AdaptedBase(WeightSource& base, WeightSource* adapter) : base_(base), adapter_(adapter) {}
  [[nodiscard]] int64_t bytes_read() const override {
    return base_.bytes_read() + (adapter_ != nullptr ? adapter_->bytes_read() : 0);
  }
  [[nodiscard]] bool has(const std::string& name) const override { return source(name).has(name); }
  void read(const ShardSpec& piece, float* to) override { source(piece.name).read(piece, to); }
  [[nodiscard]] bool write_quantized(Stream& stream, const ShardSpec& piece,
                                     const FrozenLinear& to) override {
    return source(piece.name).write_quantized(stream, piece, to);
  }
  [[nodiscard]] std::optional<FrozenFormat> quantized(const std::string& name) const override {
    return source(name).quantized(name);
  }
  void read_codes(const ShardSpec& piece, const FrozenLinear& to) override {
    source(piece.name).read_codes(piece, to);
  }

 private:
  [[nodiscard]] WeightSource& source(const std::string& name) const {
    return adapter_ != nullptr && adapter_->has(name) ? *adapter_ : base_;
  }
  WeightSource& base_;
  WeightSource* adapter_;
};

}  // namespace pesc
