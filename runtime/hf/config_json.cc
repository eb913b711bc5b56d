#include "runtime/hf/config_json.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "model/families.h"
#include "ops/core/check.h"
#include "runtime/hf/config_fields.h"
#include "runtime/hf/config_parts.h"
#include "runtime/hf/json_file.h"
#include "runtime/hf/mapped_file.h"
#include "runtime/hf/pesc_folder.h"
#include "runtime/hf/quantization_config.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

constexpr const char* kConfig = "config.json";
constexpr uint64_t kMaxConfigBytes = 16 << 20;

int64_t check_token(const ConfigFields& fields, const char* key, const nlohmann::json& value, int64_t vocab) {
  const bool fits = value.is_number_unsigned() && value.get<uint64_t>() < static_cast<uint64_t>(vocab);
  if (!fits) {
    fields.fail(key, str_cat("must be token ids from 0 to ", vocab - 1, " (vocab_size is ", vocab, "), not ",
                             value.is_number() ? value.dump() : std::string("this")));
  }
  return value.get<int64_t>();
}

// The file describes a text model, or a model of more than text in which one stands under text_config.
struct TextFields {
  ConfigFields whole, text;

  // Where a key stands that both may have: the text model's own goes first.
  [[nodiscard]] const ConfigFields& of(const char* key) const { return text.has(key) ? text : whole; }
};

TextFields text_fields(const ConfigFields& whole) {
  const FamilyTraits* row = find_multimodal(whole);
  if (row == nullptr) return {whole, whole};
  const std::optional<ConfigFields> text = whole.object("text_config");
  if (!text)
    whole.fail("text_config",
               str_cat("is missing; a model of type ", row->multimodal_type, " has its text part there"));
  return {whole, *text};
}

// The row of the text part. A text part that does not say its type has the usual one.
const FamilyTraits& read_family(const TextFields& fields) {
  const FamilyTraits* row = find_multimodal(fields.whole);
  if (row == nullptr) return read_family(fields.whole);
  if (!fields.text.has("model_type") && !fields.text.has("architectures")) return *row;
  const FamilyTraits& own = read_family(fields.text);
  if (&own != row) {
    fields.text.fail("model_type",
                     str_cat("a model of type ", row->multimodal_type, " has a text part of type ",
                             row->model_type, " here, not ", own.model_type));
  }
  return own;
}

void read_tokens(const TextFields& file, ModelConfig& config) {
  const auto token = [&](const char* key, const nlohmann::json& value) {
    return check_token(file.of(key), key, value, config.vocab_size);
  };
  if (const nlohmann::json* bos = file.of("bos_token_id").find("bos_token_id"))
    config.bos_id = token("bos_token_id", *bos);
  // Some files write -1 for none.
  const nlohmann::json* pad = file.of("pad_token_id").find("pad_token_id");
  if (pad != nullptr && !(pad->is_number_integer() && pad->get<int64_t>() < 0))
    config.pad_id = token("pad_token_id", *pad);
  if (const nlohmann::json* eos = file.of("eos_token_id").find("eos_token_id")) {
    if (eos->is_array()) {
      for (const nlohmann::json& id : *eos) config.eos_ids.push_back(token("eos_token_id", id));
    } else {
      config.eos_ids.push_back(token("eos_token_id", *eos));
    }
  }
}

void read_heads(const ConfigFields& fields, const FamilyTraits& traits, ModelConfig& config) {
  config.num_attention_heads = fields.required_integer("num_attention_heads", 1);
  // As transformers: null means num_attention_heads, and a file without the key the family's default.
  constexpr const char* kKvHeads = "num_key_value_heads";
  const int64_t usual = traits.defaults.num_key_value_heads;
  const bool is_usual = fields.absent(kKvHeads) && usual > 0;
  config.num_key_value_heads =
      is_usual ? usual : fields.integer(kKvHeads, 1).value_or(config.num_attention_heads);
  if (config.num_attention_heads % config.num_key_value_heads != 0) {
    const std::string whose =
        is_usual ? str_cat("is missing, and ", usual, ", the default of ", traits.model_type, ',')
                 : str_cat(config.num_key_value_heads);
    fields.fail(kKvHeads, str_cat(whose, " does not divide num_attention_heads ", config.num_attention_heads,
                                  is_usual ? "; write the number that the model was trained with" : ""));
  }
  std::optional<int64_t> head_dim = fields.integer("head_dim", 1);
  if (!head_dim && traits.defaults.head_dim > 0) head_dim = traits.defaults.head_dim;
  if (!head_dim && config.hidden_size % config.num_attention_heads != 0) {
    fields.fail("num_attention_heads", str_cat(config.num_attention_heads, " does not divide hidden_size ",
                                               config.hidden_size, ", and head_dim is not given"));
  }
  config.head_dim = head_dim.value_or(config.hidden_size / config.num_attention_heads);
  if (config.head_dim % 2 != 0) {
    fields.fail("head_dim", str_cat(config.head_dim, " is odd; rotary embeddings turn pairs"));
  }
}

// Of a PESC model: of its dense part.
ModelConfig model_config_of(const nlohmann::json& whole, const std::string& file_name) {
  const nlohmann::json document = without_experts(whole);
  const TextFields file = text_fields(ConfigFields(document, file_name));
  const ConfigFields& fields = file.text;
  const FamilyTraits& traits = read_family(file);
  const FamilyTraits::Defaults& defaults = traits.defaults;
  ModelConfig config;
  config.family = traits.family;
  config.vocab_size = fields.required_integer("vocab_size", 1);
  config.hidden_size = fields.required_integer("hidden_size", 1);
  config.intermediate_size = fields.required_integer("intermediate_size", 1);
  config.num_hidden_layers = fields.required_integer("num_hidden_layers", 1);
  read_heads(fields, traits, config);
  config.max_position_embeddings =
      fields.integer("max_position_embeddings", 1).value_or(defaults.max_position_embeddings);
  config.rms_norm_eps = fields.positive("rms_norm_eps").value_or(defaults.rms_norm_eps);
  const bool own = fields.has("quantization_config") || fields.has("compression_config");
  config.quantized = read_quantization(own ? fields : file.whole, config);
  refuse_unsupported(fields, config);
  config.rope = read_rope(fields, traits, config.max_position_embeddings);
  config.layers_without_rope = read_layers_without_rope(fields, traits, config.num_hidden_layers);
  config.qkv_bias = traits.qkv_bias();
  config.tie_word_embeddings =
      file.of("tie_word_embeddings").boolean("tie_word_embeddings").value_or(defaults.tie_word_embeddings);
  config.sliding_window = read_sliding_window(fields, traits, config);
  read_tokens(file, config);
  return config;
}

// A folder without config.json. In the Hugging Face cache the model stands below: models--X/snapshots/HASH.
[[noreturn]] void refuse_no_config(const std::string& folder) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  const fs::path snapshots = fs::path(folder) / "snapshots";
  if (!fs::is_directory(snapshots, ignored)) {
    throw DataError(str_cat(folder, ": has no ", kConfig,
                            "; the folder of a Hugging Face model holds config.json, *.safetensors and a "
                            "tokenizer"));
  }
  std::vector<std::string> models;
  for (const fs::directory_entry& entry : fs::directory_iterator(snapshots, ignored))
    if (folder_has(entry.path().string(), kConfig)) models.push_back(entry.path().string());
  std::ranges::sort(models);
  const std::string model = models.empty() ? (snapshots / "HASH").string() : models.front();
  throw DataError(
      str_cat(folder, ": has no ", kConfig, "; it is a repository of the Hugging Face cache, ",
              models.empty() ? "without a downloaded model; download it, and give the folder "
                             : "whose model is the folder ",
              printable(model),
              models.size() > 1 ? str_cat(" or another of its ", models.size(), " snapshots") : ""));
}

}  // namespace

ModelConfig parse_model_config(std::string_view text, const std::string& file_name) {
  const nlohmann::json document = parse_json_document(text, file_name);
  return model_config_of(document, file_name);
}

ModelConfig read_model_config(const std::string& folder, Links links) {
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error)) {
    throw DataError(str_cat(folder, ": is not a folder; give the folder of a Hugging Face model"));
  }
  if (!folder_has(folder, kConfig)) refuse_no_config(folder);
  const nlohmann::json document = read_json_file(folder, kConfig, kMaxConfigBytes, links);
  return model_config_of(document, (std::filesystem::path(folder) / kConfig).string());
}

}  // namespace pesc
