// The tensors of an exported model, from the frozen base and a checkpoint of any layout, on one rank and without
// a decoder: each is read, merged and given out in slices of at most 64 MiB, so that the memory that this
// takes does not depend on the model.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "model/weight_source.h"
#include "ops/core/device.h"
#include "parallel/shard_spec.h"
#include "runtime/checkpoint/piece_reader.h"
#include "runtime/hf/peft_modules.h"
#include "runtime/hf/safetensors_write.h"

namespace pesc {

struct ExportTensorsOptions {
  static constexpr int64_t kSliceBytes = int64_t{64} << 20;
  int64_t slice_bytes = kSliceBytes;        // of float32 values; one row where it has more
  std::function<void(int64_t)> progress{};  // called with the bytes of each slice that was given out
};

class ExportTensors {
 public:
  // All outlive this object, and this object the entries that it gives. `base` may be null in TrainMode::kFull,
  // where the checkpoint has every weight.
  ExportTensors(const ModelConfig& model, const PescConfig& pesc, WeightSource* base, FileSystem& files,
                const LoadedCheckpoint& checkpoint, Stream& stream, ExportTensorsOptions options = {});
  ExportTensors(const ExportTensors&) = delete;
  ExportTensors& operator=(const ExportTensors&) = delete;

  // The names of the dense model's parameters, each apart (model/hf_names.h).
  [[nodiscard]] std::vector<std::string> dense_names() const;

  // The dense model, layer by layer, under the names of the family's files, and fused where they are: W +
  // (lora_alpha / r) B A where a linear has LoRA, added in float32 and rounded to `dtype` once.
  [[nodiscard]] std::vector<SafetensorsWriteEntry> dense(DType dtype);
  // What PESC adds: the routers in `router_dtype`, the adapters in `dtype`. `prefix` is put before each name.
  [[nodiscard]] std::vector<SafetensorsWriteEntry> moe_adapters(DType dtype, DType router_dtype,
                                                                std::string_view prefix = "");
  // LoRA's A and B by themselves, as PEFT has them (runtime/hf/peft_modules.h).
  [[nodiscard]] std::vector<SafetensorsWriteEntry> lora(DType dtype, std::string_view prefix);

 private:
  struct Row {  // of the table of parameters
    ShardSpec spec;
    bool dense, trainable;
  };
  [[nodiscard]] SafetensorsWriteEntry entry(const Row& row, DType dtype, std::string_view prefix = "");
  // One tensor of several linears, one below the other.
  [[nodiscard]] SafetensorsWriteEntry fused_entry(const std::string& name, const std::vector<Row>& parts,
                                                  DType dtype);
  // LoRA of several linears of one module.
  [[nodiscard]] SafetensorsWriteEntry fused_lora_a(const PeftModule& module, int64_t layer, DType dtype,
                                                   std::string_view prefix);
  [[nodiscard]] SafetensorsWriteEntry fused_lora_b(const PeftModule& module, int64_t layer, DType dtype,
                                                   std::string_view prefix);
  // Gives out values, rounded where the type asks for it.
  void put(const std::vector<float>& values, DType dtype, const ByteSink& sink);
  void produce(const ShardSpec& spec, bool trainable, DType dtype, const ByteSink& sink);
  // Rows [row, row + rows) of a tensor as float32.
  void read(const ShardSpec& whole, bool trainable, int64_t row, int64_t rows, std::vector<float>& into);
  void add_lora(const ShardSpec& weight, int64_t row, int64_t rows, std::vector<float>& values);

  ModelConfig model_;
  LoraConfig lora_config_;
  float lora_scale_;
  WeightSource* base_;
  PieceReader reader_;
  Stream& stream_;
  ExportTensorsOptions options_;
  std::vector<Row> rows_;
  std::map<std::string, ShardSpec> lora_;  // A and B by name
  // A of the linear that is being written.
  std::string lora_a_name_;
  std::vector<float> lora_a_;
};

}  // namespace pesc
