// The JSON files of an exported model.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/config.h"
#include "ops/core/tensor.h"
#include "runtime/config/experiment.h"

namespace pesc {

// What the files say of the model.
struct ExportModel {
  ModelConfig model;  // bos_id and pad_id as they are to be written
  PescConfig pesc;
  std::vector<int64_t> stops;  // every token that ends an answer
  double initializer_range = 0.02;
  nlohmann::json base_config;  // of the base's folder; null: there is none
  GenerateSection generate;
};

// config.json of the model in transformers. The keys of the base's own file stay where they change nothing that
// is known here; the rope stands in it in the words of transformers 4 and of 5. With adapters it has a model type
// of its own (pesc_llama): loaded without our modelling file it fails, where the base's type would silently give the
// dense model. Throws DataError.
[[nodiscard]] std::string hf_config_text(const ExportModel& m, DType dtype);

// config.json as the authors of PESC publish it (Camelidae).
[[nodiscard]] std::string camelidae_config_text(const ExportModel& m, DType dtype);
// Why the published modelling file would not compute this model; empty where it does. It ignores rope_theta,
// head_dim, biases and tied heads.
[[nodiscard]] std::string why_not_camelidae(const ModelConfig& model, const PescConfig& pesc);

// generation_config.json: the tokens that end an answer, and answers as `pesc generate` gives them. Nothing of the
// base's file stays, such as a repetition penalty, which was not applied here.
[[nodiscard]] std::string generation_config_text(const ExportModel& m);

// adapter_config.json of PEFT; `base` is the path of the model that the adapter is for. LoRA of a fused module is one of a higher
// rank (runtime/hf/peft_modules.h).
[[nodiscard]] std::string adapter_config_text(const ModelConfig& model, const PescConfig& pesc,
                                              const std::string& base);

}  // namespace pesc
