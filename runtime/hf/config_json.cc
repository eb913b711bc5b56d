#include "runtime/hf/config_json.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <optional>
#include <vector>

#include "ops/core/check.h"
#include "runtime/hf/config_fields.h"
#include "runtime/hf/config_parts.h"
#include "runtime/hf/json_file.h"
#include "runtime/hf/safetensors.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

constexpr const char* kConfig = "config.json";
constexpr uint64_t kMaxConfigBytes = 16 << 20;

// What transformers assumes of each family where config.json is silent.
struct FamilyFacts {
  Family family;
  const char* model_type;
  const char* architecture;
  int64_t default_max_positions;
};
constexpr std::array<FamilyFacts, 3> kFamilies = {{
    {Family::kLlama, "llama", "LlamaForCausalLM", 2048},
    {Family::kMistral, "mistral", "MistralForCausalLM", 4096 * 32},
    {Family::kQwen2, "qwen2", "Qwen2ForCausalLM", 32768},
}};
constexpr double kDefaultRmsEps = 1e-6;
constexpr int64_t kDefaultWindow = 4096;      // of Mistral and Qwen2
constexpr int64_t kDefaultWindowedFrom = 28;  // max_window_layers of Qwen2

const FamilyFacts& facts_of(Family family) {
  return *std::find_if(kFamilies.begin(), kFamilies.end(),
                       [&](const FamilyFacts& f) { return f.family == family; });
}

std::string supported(const char* FamilyFacts::*field) {
  std::string out;
  for (const FamilyFacts& f : kFamilies) out += (out.empty() ? "" : ", ") + std::string(f.*field);
  return out;
}

const FamilyFacts& read_family(const ConfigFields& fields) {
  const std::optional<std::string> type = fields.string("model_type");
  const std::optional<std::vector<std::string>> architectures = fields.strings("architectures");
  const FamilyFacts* by_type = nullptr;
  const FamilyFacts* by_architecture = nullptr;
  for (const FamilyFacts& f : kFamilies) {
    if (type && *type == f.model_type) by_type = &f;
    if (architectures && architectures->size() == 1 && architectures->front() == f.architecture)
      by_architecture = &f;
  }
  if (architectures && !architectures->empty() && by_architecture == nullptr) {
    fields.fail("architectures",
                str_cat("the architecture ", in_quotes(architectures->front()),
                        " is not supported; supported are ", supported(&FamilyFacts::architecture)));
  }
  if (type && by_type == nullptr) {
    fields.fail("model_type",
                str_cat("the model type ", in_quotes(*type), " is not supported; supported are ",
                        supported(&FamilyFacts::model_type)));
  }
  if (by_type == nullptr && by_architecture == nullptr) {
    fields.fail("model_type", str_cat("is missing; supported are ", supported(&FamilyFacts::model_type)));
  }
  if (by_type != nullptr && by_architecture != nullptr && by_type != by_architecture) {
    fields.fail("model_type", str_cat("'", by_type->model_type, "' contradicts architectures ['",
                                      by_architecture->architecture, "']"));
  }
  return by_type != nullptr ? *by_type : *by_architecture;
}

// Whether layer_types names a layer with a sliding window; nothing where it is not there.
std::optional<bool> names_sliding_layers(const ConfigFields& fields, int64_t layers) {
  const std::optional<std::vector<std::string>> types = fields.strings("layer_types");
  if (!types) return std::nullopt;
  if (static_cast<int64_t>(types->size()) != layers) {
    fields.fail("layer_types", str_cat("names ", types->size(), " layers, num_hidden_layers is ", layers));
  }
  bool some_layer = false;
  for (const std::string& type : *types) {
    if (type != "full_attention" && type != "sliding_attention") {
      fields.fail("layer_types",
                  str_cat("the layer type ", in_quotes(type),
                          " is not supported; supported are full_attention, sliding_attention"));
    }
    some_layer = some_layer || type == "sliding_attention";
  }
  return some_layer;
}

// The window that some layer's attention has, or 0.
int64_t read_sliding_window(const ConfigFields& fields, Family family, int64_t layers) {
  const std::optional<bool> sliding = names_sliding_layers(fields, layers);
  const bool used = fields.boolean("use_sliding_window").value_or(false);
  if (family == Family::kLlama) {
    // The family has none, so that sliding_window alone means nothing; but a file may say that it is used.
    if (!used && !sliding.value_or(false)) return 0;
    return fields.integer("sliding_window", 1).value_or(0);
  }
  // Here null and absent differ: null means no window.
  const int64_t window =
      fields.absent("sliding_window") ? kDefaultWindow : fields.integer("sliding_window", 1).value_or(0);
  if (family == Family::kMistral) return window;

  if (sliding.value_or(false) && !used)
    fields.fail("layer_types", "names sliding_attention, but use_sliding_window is not true");
  const int64_t from = fields.integer("max_window_layers", 0).value_or(kDefaultWindowedFrom);
  return used && sliding.value_or(from < layers) ? window : 0;
}

int64_t check_token(const ConfigFields& fields, const char* key, const nlohmann::json& value, int64_t vocab) {
  const bool fits = value.is_number_unsigned() && value.get<uint64_t>() < static_cast<uint64_t>(vocab);
  if (!fits) {
    fields.fail(key, str_cat("must be token ids from 0 to ", vocab - 1, " (vocab_size is ", vocab, "), not ",
                             value.is_number() ? value.dump() : std::string("this")));
  }
  return value.get<int64_t>();
}

void read_tokens(const ConfigFields& fields, ModelConfig& config) {
  if (const nlohmann::json* bos = fields.find("bos_token_id")) {
    config.bos_id = check_token(fields, "bos_token_id", *bos, config.vocab);
  }
  // Some files write -1 for none.
  const nlohmann::json* pad = fields.find("pad_token_id");
  if (pad != nullptr && !(pad->is_number_integer() && pad->get<int64_t>() < 0))
    config.pad_id = check_token(fields, "pad_token_id", *pad, config.vocab);
  if (const nlohmann::json* eos = fields.find("eos_token_id")) {
    if (eos->is_array()) {
      for (const nlohmann::json& id : *eos) {
        config.eos_ids.push_back(check_token(fields, "eos_token_id", id, config.vocab));
      }
    } else {
      config.eos_ids.push_back(check_token(fields, "eos_token_id", *eos, config.vocab));
    }
  }
}

void read_heads(const ConfigFields& fields, ModelConfig& config) {
  config.heads = fields.required_integer("num_attention_heads", 1);
  config.kv_heads = fields.integer("num_key_value_heads", 1).value_or(config.heads);
  if (config.heads % config.kv_heads != 0) {
    fields.fail("num_key_value_heads",
                str_cat(config.kv_heads, " does not divide num_attention_heads ", config.heads));
  }
  const std::optional<int64_t> head_dim = fields.integer("head_dim", 1);
  if (!head_dim && config.hidden % config.heads != 0) {
    fields.fail("num_attention_heads", str_cat(config.heads, " does not divide hidden_size ", config.hidden,
                                               ", and head_dim is not given"));
  }
  config.head_dim = head_dim.value_or(config.hidden / config.heads);
  if (config.head_dim % 2 != 0) {
    fields.fail("head_dim", str_cat(config.head_dim, " is odd; rotary embeddings turn pairs"));
  }
}

ModelConfig model_config_of(const nlohmann::json& document, const std::string& file_name) {
  const ConfigFields fields(document, file_name);
  const FamilyFacts& facts = read_family(fields);
  ModelConfig config;
  config.family = facts.family;
  config.vocab = fields.required_integer("vocab_size", 1);
  config.hidden = fields.required_integer("hidden_size", 1);
  config.ffn = fields.required_integer("intermediate_size", 1);
  config.layers = fields.required_integer("num_hidden_layers", 1);
  read_heads(fields, config);
  config.max_positions = fields.integer("max_position_embeddings", 1).value_or(facts.default_max_positions);
  config.rms_eps = fields.positive("rms_norm_eps").value_or(kDefaultRmsEps);
  refuse_unsupported(fields, config);
  config.rope = read_rope(fields, config.max_positions);
  config.qkv_bias = facts.family == Family::kQwen2;
  config.tied_embeddings = fields.boolean("tie_word_embeddings").value_or(false);
  config.sliding_window = read_sliding_window(fields, facts.family, config.layers);
  read_tokens(fields, config);
  return config;
}

}  // namespace

const char* family_name(Family family) {
  return facts_of(family).model_type;
}

ModelConfig parse_model_config(std::string_view text, const std::string& file_name) {
  const nlohmann::json document = parse_json_document(text, file_name);
  return model_config_of(document, file_name);
}

ModelConfig read_model_config(const std::string& folder, Links links) {
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error)) {
    throw DataError(str_cat(folder, ": is not a folder; give the folder of a Hugging Face model"));
  }
  const nlohmann::json document = read_json_file(folder, kConfig, kMaxConfigBytes, links);
  return model_config_of(document, (std::filesystem::path(folder) / kConfig).string());
}

}  // namespace pesc
