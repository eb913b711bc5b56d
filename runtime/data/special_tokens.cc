#include "runtime/data/special_tokens.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "ops/core/check.h"
#include "runtime/data/tags.h"
#include "runtime/hf/json_file.h"
#include "runtime/hf/mapped_file.h"

namespace pesc {
namespace {

using nlohmann::json;
using Source = SpecialToken::Source;

constexpr const char* kConfig = "config.json";
constexpr const char* kGeneration = "generation_config.json";
constexpr const char* kTokenizerConfig = "tokenizer_config.json";
constexpr const char* kTokensMap = "special_tokens_map.json";
constexpr uint64_t kMaxSpecialTokensBytes = uint64_t{16} << 20;

std::optional<json> read_if_there(const std::string& folder, const char* name, Links links) {
  if (folder.empty() || !folder_has(folder, name)) return std::nullopt;
  json document = read_json_file(folder, name, kMaxSpecialTokensBytes, links);
  if (!document.is_object()) throw DataError(str_cat(folder, "/", name, ": is no JSON object"));
  return document;
}

// A token id, a list of them, or null.
void take_ids(const json& document, const std::string& file, const char* key, int64_t vocab,
              std::vector<SpecialToken>& to) {
  const auto found = document.find(key);
  if (found == document.end() || found->is_null()) return;
  for (const json& id : found->is_array() ? *found : json::array({*found})) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(vocab)) {
      throw DataError(str_cat(file, ": ", key, " is ", made_printable(id.dump(-1, ' ', true)),
                              "; it must be token ids from 0 to ", vocab - 1, " (vocab_size is ", vocab,
                              ")"));
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

// Ids of tokens that were added to the tokenizer: {"32000": {"content": "<|im_end|>", "special": true}}.
void take_added_tokens(const json& document, const std::string& file, int64_t vocab, SpecialTokenFiles& out) {
  const auto added = document.find("added_tokens_decoder");
  if (added == document.end() || !added->is_object()) return;
  for (const auto& [id, token] : added->items()) {
    if (!token.is_object()) continue;
    const std::optional<std::string> text =
        text_of(token, file, "added_tokens_decoder." + made_printable(id));
    const auto special = token.find("special");
    if (special != token.end() && !special->is_boolean()) {
      throw DataError(
          str_cat(file, ": added_tokens_decoder.", made_printable(id), ".special is neither true nor false"));
    }
    if (text && special != token.end() && special->get<bool>()) out.texts.push_back(*text);
    for (SpecialToken& end : out.ends) {
      if (!text || end.file != file || end.text != *text) continue;
      if (id.empty() || id.size() > 9 || id.find_first_not_of("0123456789") != std::string::npos ||
          std::stoll(id) >= vocab) {
        throw DataError(str_cat(file, ": added_tokens_decoder gives ", end.key, " ", made_printable(*text),
                                " the id ", made_printable(id), "; ids go from 0 to ", vocab - 1,
                                " (vocab_size is ", vocab, ")"));
      }
      end.id = std::stoll(id);
    }
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
  for (const char* key : {"pad_token", "sep_token", "cls_token", "mask_token"}) take(key, nullptr);
  const auto additional = document.find("additional_special_tokens");
  if (additional == document.end() || !additional->is_array()) return;
  for (const json& value : *additional) {
    if (const auto text = text_of(value, file, "additional_special_tokens")) out.texts.push_back(*text);
  }
}

// The id of a statement; -1 where the tokenizer has no such piece.
int64_t id_of(const SpecialToken& token, const Tokenizer& tokenizer) {
  return token.id >= 0 ? token.id : tokenizer.piece_id(token.text);
}

std::string said_by(const SpecialToken& token) {
  return str_cat(token.key, " of ", token.file);
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
  const std::string config = model_folder.empty() ? kConfig : model_folder + "/" + kConfig;
  if (model.bos_id >= 0) out.begins.push_back({config, "bos_token_id", model.bos_id, {}, Source::kModel});
  for (const int64_t id : model.eos_ids) out.ends.push_back({config, "eos_token_id", id, {}, Source::kModel});
  if (const auto document = read_if_there(model_folder, kGeneration, links)) {
    const std::string file = model_folder + "/" + kGeneration;
    take_ids(*document, file, "bos_token_id", model.vocab, out.begins);
    take_ids(*document, file, "eos_token_id", model.vocab, out.ends);
  }
  for (const char* name : {kTokenizerConfig, kTokensMap}) {
    if (const auto document = read_if_there(tokenizer_folder, name, links)) {
      const std::string file = tokenizer_folder + "/" + name;
      take_texts(*document, file, out);
      take_added_tokens(*document, file, model.vocab, out);
    }
  }
  return out;
}

SpecialTokens agree_on_special_tokens(const SpecialTokenFiles& files, const Tokenizer& tokenizer,
                                      const ModelConfig& model) {
  SpecialTokens out{tokenizer.bos_id(), tokenizer.eos_id(), {}, {}};
  for (const SpecialToken& token : files.begins) {
    const int64_t id = id_of(token, tokenizer);
    if (out.begin < 0 || id < 0 || id == out.begin) continue;
    if (token.source == Source::kModel) {
      throw DataError(str_cat("the tokenizer begins a text with token ", out.begin, ", the model with ", id,
                              " (", said_by(token), "); use the tokenizer that belongs to the model"));
    }
    out.warnings.push_back(str_cat(said_by(token), " is token ", id, "; texts begin with token ", out.begin,
                                   " of tokenizer.model"));
  }
  bool learned = false;
  std::string named;  // by those files that say where generation stops
  std::vector<int64_t> ordinary;
  for (const SpecialToken& token : files.ends) {
    const int64_t id = id_of(token, tokenizer);
    if (id < 0) {
      out.warnings.push_back(str_cat(said_by(token), " is '", made_printable(token.text),
                                     "', which the tokenizer has no piece for; no answer ends with it"));
      continue;
    }
    PESC_CHECK(id < model.vocab, "token ", id, " of ", model.vocab);
    out.stops.push_back(id);
    if (id < tokenizer.vocab_size() && !tokenizer.is_control(static_cast<int32_t>(id)))
      ordinary.push_back(id);
    if (token.source == Source::kTokenizer) continue;
    learned |= id == out.end;
    constexpr size_t kMost = 200;
    if (named.size() < kMost) named += str_cat(named.empty() ? "" : ", ", id, " (", said_by(token), ")");
  }
  if (out.end >= 0 && !named.empty() && !learned) {
    throw DataError(str_cat("answers are learned with token ", out.end,
                            " at their end (that of tokenizer.model), but "
                            "the model ends a text with token ",
                            named,
                            ": nothing would stop behind an answer; use the "
                            "tokenizer that belongs to the model, or add ",
                            out.end, " to eos_token_id of its config.json"));
  }
  if (out.end >= 0) out.stops.push_back(out.end);
  std::ranges::sort(out.stops);
  out.stops.erase(std::ranges::unique(out.stops).begin(), out.stops.end());
  if (!ordinary.empty()) {
    const std::string text = tokenizer.decode(std::vector<int32_t>{static_cast<int32_t>(ordinary.front())});
    out.warnings.push_back(str_cat(ordinary.size(),
                                   " of the tokens that end an answer are ordinary pieces of text, "
                                   "token ",
                                   ordinary.front(), " ('", made_printable(text),
                                   "') first: an answer ends where such text stands in it (eos_token_id)"));
  }
  return out;
}

}  // namespace pesc
