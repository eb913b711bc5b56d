#include "runtime/data/special_token_files.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "ops/core/check.h"
#include "runtime/hf/json_file.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

using nlohmann::json;
using Source = SpecialToken::Source;

constexpr const char* kConfig = "config.json";
constexpr const char* kGeneration = "generation_config.json";
constexpr const char* kTokenizerConfig = "tokenizer_config.json";
constexpr const char* kTokensMap = "special_tokens_map.json";
constexpr const char* kAddedTokens = "added_tokens.json";
constexpr uint64_t kMaxSpecialTokensBytes = uint64_t{16} << 20;

std::optional<json> read_if_there(const std::string& folder, const char* name, Links links) {
  if (folder.empty() || !folder_has(folder, name)) return std::nullopt;
  json document = read_json_file(folder, name, kMaxSpecialTokensBytes, links);
  if (!document.is_object()) throw DataError(str_cat(folder, "/", name, ": is no JSON object"));
  return document;
}

std::string range_of(int64_t vocab) {
  return str_cat("from 0 to ", vocab - 1, " (vocab_size is ", vocab, ")");
}

// Some files write -1 for a model that pads with nothing.
enum class Negative { kRefused, kNone };

// A token id, a list of them, or null.
void take_ids(const json& document, const std::string& file, const char* key, int64_t vocab,
              std::vector<SpecialToken>& to, Negative negative = Negative::kRefused) {
  const auto found = document.find(key);
  if (found == document.end() || found->is_null()) return;
  for (const json& id : found->is_array() ? *found : json::array({*found})) {
    if (negative == Negative::kNone && id.is_number_integer() && id.get<int64_t>() < 0) continue;
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(vocab)) {
      throw DataError(str_cat(file, ": ", key, " is ", printable(id.dump(-1, ' ', true)),
                              "; it must be token ids ", range_of(vocab)));
    }
    to.push_back({file, key, id.get<int64_t>(), {}, Source::kGeneration});
  }
}

// "</s>" or {"content": "</s>", ...}; nothing for null.
std::optional<std::string> text_of(const json& value, const std::string& file, const std::string& key) {
  if (value.is_null()) return std::nullopt;
  if (value.is_string()) return value.get<std::string>();
  if (value.is_object() && value.contains("content") && value["content"].is_string())
    return value["content"].get<std::string>();
  throw DataError(str_cat(file, ": ", key, " is neither a text nor an object with a text \"content\""));
}

std::optional<bool> boolean_of(const json& object, const char* key, const std::string& place) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return std::nullopt;
  if (!found->is_boolean()) throw DataError(str_cat(place, key, " is neither true nor false"));
  return found->get<bool>();
}

// {"32000": {"content": "<|im_end|>", "special": true}}
void take_added_tokens_decoder(const json& document, const std::string& file, SpecialTokenFiles& out) {
  const auto added = document.find("added_tokens_decoder");
  if (added == document.end() || !added->is_object()) return;
  for (const auto& [id, token] : added->items()) {
    if (!token.is_object()) continue;
    const std::string place = "added_tokens_decoder." + printable(id);
    const std::optional<std::string> text = text_of(token, file, place);
    const std::optional<bool> special = boolean_of(token, "special", str_cat(file, ": ", place, "."));
    if (!text) continue;
    if (special.value_or(false)) out.texts.push_back(*text);
    const bool good =
        !id.empty() && id.size() <= 9 && id.find_first_not_of("0123456789") == std::string::npos;
    out.added.push_back({file, *text, good ? std::stoll(id) : -1, printable(id)});
  }
}

// {"<|im_end|>": 32000}
void take_added_tokens(const json& document, const std::string& file, SpecialTokenFiles& out) {
  for (const auto& [text, id] : document.items()) {
    const bool good = id.is_number_unsigned() && id.get<uint64_t>() <= uint64_t{INT32_MAX};
    out.added.push_back({file, text, good ? id.get<int64_t>() : -1, printable(id.dump(-1, ' ', true))});
  }
}

void take_texts(const json& document, const std::string& file, SpecialTokenFiles& out) {
  const auto take = [&](const char* key, std::vector<SpecialToken>* to) {
    const auto found = document.find(key);
    if (found == document.end()) return;
    const std::optional<std::string> text = text_of(*found, file, key);
    if (!text || text->empty()) return;
    out.texts.push_back(*text);
    if (to != nullptr) to->push_back({file, key, -1, *text, Source::kTokenizer});
  };
  take("bos_token", &out.begins);
  take("eos_token", &out.ends);
  take("pad_token", &out.pads);
  for (const char* key : {"sep_token", "cls_token", "mask_token"}) take(key, nullptr);
  const auto additional = document.find("additional_special_tokens");
  if (additional == document.end() || !additional->is_array()) return;
  for (const json& value : *additional) {
    if (const auto text = text_of(value, file, "additional_special_tokens")) out.texts.push_back(*text);
  }
}

// Of all files together, so that two that name the same text have the same token.
void give_ids(const std::vector<AddedTokenId>& added, int64_t vocab, std::vector<SpecialToken>& tokens) {
  for (SpecialToken& token : tokens) {
    if (token.id >= 0) continue;
    for (const AddedTokenId& a : added) {
      if (a.text != token.text) continue;
      if (a.id < 0 || a.id >= vocab) {
        throw DataError(str_cat(a.file, ": gives ", token.key, " ", printable(token.text), " of ", token.file,
                                " the id ", a.written, "; ids go ", range_of(vocab)));
      }
      if (token.id < 0) token.id = a.id;
    }
  }
}

}  // namespace

SpecialPieces SpecialTokenFiles::pieces() const {
  SpecialPieces all;
  all.texts = texts;
  for (const SpecialToken& token : ends) {
    if (token.id >= 0) all.ids.push_back(token.id);
  }
  return all;
}

SpecialTokenFiles read_special_tokens(const ModelConfig& model, const std::string& model_folder,
                                      const std::string& tokenizer_folder, Links links) {
  SpecialTokenFiles out;
  for (const char* name : {"tekken.json", "tokenizer.model", "tokenizer.json"}) {
    if (!tokenizer_folder.empty() && folder_has(tokenizer_folder, name)) out.tokenizer = name;
  }
  const std::string config = model_folder.empty() ? kConfig : model_folder + "/" + kConfig;
  if (model.bos_id >= 0) out.begins.push_back({config, "bos_token_id", model.bos_id, {}, Source::kModel});
  for (const int64_t id : model.eos_ids) out.ends.push_back({config, "eos_token_id", id, {}, Source::kModel});
  if (model.pad_id >= 0) out.pads.push_back({config, "pad_token_id", model.pad_id, {}, Source::kModel});
  if (const auto document = read_if_there(model_folder, kGeneration, links)) {
    const std::string file = model_folder + "/" + kGeneration;
    take_ids(*document, file, "bos_token_id", model.vocab_size, out.begins);
    take_ids(*document, file, "eos_token_id", model.vocab_size, out.ends);
    take_ids(*document, file, "pad_token_id", model.vocab_size, out.pads, Negative::kNone);
  }
  for (const char* name : {kTokenizerConfig, kTokensMap}) {
    if (const auto document = read_if_there(tokenizer_folder, name, links)) {
      const std::string file = tokenizer_folder + "/" + name;
      take_texts(*document, file, out);
      take_added_tokens_decoder(*document, file, out);
      if (name != kTokenizerConfig) continue;
      const auto adds = [&](const char* key) -> std::optional<AddsToken> {
        const std::optional<bool> value = boolean_of(*document, key, file + ": ");
        return value ? std::optional(AddsToken{file, *value}) : std::nullopt;
      };
      out.adds_begin = adds("add_bos_token");
      out.adds_end = adds("add_eos_token");
    }
  }
  if (const auto document = read_if_there(tokenizer_folder, kAddedTokens, links))
    take_added_tokens(*document, tokenizer_folder + "/" + kAddedTokens, out);
  for (std::vector<SpecialToken>* role : {&out.begins, &out.ends, &out.pads})
    give_ids(out.added, model.vocab_size, *role);
  return out;
}

}  // namespace pesc
