#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "ops/core/check.h"
#include "runtime/filesystem/file_kind.h"
#include "runtime/hf/json_file.h"
#include "runtime/hf/mapped_file.h"
#include "runtime/text/printable.h"
#include "runtime/tokenizer/json_tokenizer.h"
#include "runtime/tokenizer/json_tokenizer_parts.h"

namespace pesc {
namespace {

using nlohmann::json;

constexpr const char* kTokenizerJson = "tokenizer.json";
constexpr const char* kTokenizerConfigJson = "tokenizer_config.json";
constexpr const char* kTokensMapJson = "special_tokens_map.json";
constexpr const char* kAddedTokensJson = "added_tokens.json";
constexpr const char* kTekkenJson = "tekken.json";
constexpr uint64_t kMaxTokenizerJson = uint64_t{256} << 20;
constexpr uint64_t kMaxTokenizerConfig = uint64_t{16} << 20;

// "</s>", or the content of {"content": "</s>", ...}; empty for anything else.
std::string token_text(const json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_object() && value.contains("content") && value["content"].is_string())
    return value["content"].get<std::string>();
  return {};
}

// Empty where no file says it.
std::string named_special_token(const std::string& folder, const char* key, Links links) {
  for (const char* name : {kTokenizerConfigJson, kTokensMapJson}) {
    if (!folder_has(folder, name)) continue;
    const json document = read_json_file(folder, name, kMaxTokenizerConfig, links);
    if (!document.is_object() || !document.contains(key)) continue;
    if (std::string content = token_text(document[key]); !content.empty()) return content;
  }
  return {};
}

// An entry of added_tokens_decoder; `place` is where, for messages. Tokens with a name (eos_token) are special,
// and without "normalized" a token is normalized unless it is special.
AddedToken configured_token(const json& entry, const std::unordered_set<std::string>& named,
                            const std::string& place) {
  const auto flag = [&](const char* name, bool otherwise) {
    const auto found = entry.find(name);
    if (found == entry.end() || found->is_null()) return otherwise;
    if (!found->is_boolean()) throw DataError(str_cat(place, ".", name, " is neither true nor false"));
    return found->get<bool>();
  };
  AddedToken token;
  token.content = token_text(entry);
  token.single_word = flag("single_word", false);
  token.lstrip = flag("lstrip", false);
  token.rstrip = flag("rstrip", false);
  token.special = flag("special", false) || named.contains(token.content);
  token.normalized = flag("normalized", !token.special);
  return token;
}

// As `flags` of ConfiguredTokens; `file` is for messages.
std::unordered_map<std::string, AddedToken> configured_flags(const json& document, const std::string& file) {
  std::unordered_map<std::string, AddedToken> out;
  const auto entries = document.find("added_tokens_decoder");
  if (entries == document.end() || !entries->is_object()) return out;
  std::unordered_set<std::string> named;
  for (const auto& [key, value] : document.items()) {
    if (key.ends_with("_token")) named.insert(token_text(value));
  }
  std::unordered_map<std::string, std::string> ids;
  for (const auto& [id, entry] : entries->items()) {
    if (!entry.is_object() || token_text(entry).empty()) continue;
    const AddedToken token =
        configured_token(entry, named, str_cat(file, ": added_tokens_decoder.", printable(id)));
    const auto [before, first] = ids.emplace(token.content, id);
    if (!first && matching_flags(token) != matching_flags(out.at(token.content))) {
      throw DataError(str_cat(file, ": added_tokens_decoder has ", in_quotes(token.content),
                              " with other flags under the ids ", printable(before->second), " and ",
                              printable(id), "; leave one of them, the one with the flags that you want"));
    }
    out.emplace(token.content, token);
  }
  return out;
}

// Null where the folder has none, or it is no object.
json object_if_there(const std::string& folder, const char* name, Links links) {
  if (!folder_has(folder, name)) return {};
  json document = read_json_file(folder, name, kMaxTokenizerConfig, links);
  return document.is_object() ? document : json();
}

// The tokens that transformers adds where tokenizer.json does not have them.
class NamedTokens {
 public:
  // A role has one token: that of the document taken last.
  void take(const json& document, const std::string& file) {
    constexpr std::array lists = {"additional_special_tokens", "extra_special_tokens",
                                  "model_specific_special_tokens"};
    constexpr std::array roles = {"bos_token", "eos_token", "unk_token", "pad_token"};
    for (const auto& [key, value] : document.items()) {
      const std::string place = str_cat(printable(key), " of ", file);
      if (key == "fill_token") continue;  // CodeLlama's class takes its "<FILL_ME>" out of a text first
      if (key.ends_with("_token")) {
        const bool has_role = std::ranges::find(roles, key) != roles.end();
        by_key_[key] = {token_text(value), place, has_role};
      } else if (value.is_structured() && std::ranges::find(lists, key) != lists.end()) {
        for (const json& token : value) add({token_text(token), place});
      }
    }
  }
  void add(NamedToken token) {
    if (!token.content.empty()) others_.push_back(std::move(token));
  }
  [[nodiscard]] std::vector<NamedToken> all() && {
    for (auto& [key, token] : by_key_) add(std::move(token));
    return std::move(others_);
  }

 private:
  std::map<std::string, NamedToken> by_key_;
  std::vector<NamedToken> others_;
};

// Transformers reads special_tokens_map.json and added_tokens.json only where tokenizer_config.json has no
// added_tokens_decoder.
ConfiguredTokens configured_tokens(const std::string& folder, Links links) {
  const std::string file = folder + "/" + kTokenizerConfigJson;
  const json config = object_if_there(folder, kTokenizerConfigJson, links);
  ConfiguredTokens out;
  NamedTokens named;
  if (config.is_object()) {
    out.flags = configured_flags(config, file);
    named.take(config, file);
  }
  if (config.contains("added_tokens_decoder")) {
    for (const auto& [id, entry] : config["added_tokens_decoder"].items())
      named.add({token_text(entry), str_cat("added_tokens_decoder.", printable(id), " of ", file)});
  } else {
    const json map = object_if_there(folder, kTokensMapJson, links);
    if (map.is_object()) named.take(map, folder + "/" + kTokensMapJson);
    const json added = object_if_there(folder, kAddedTokensJson, links);
    for (const auto& [text, id] : added.items()) named.add({text, folder + "/" + kAddedTokensJson});
  }
  out.named = std::move(named).all();
  return out;
}

std::string read_tokenizer_file(const std::string& folder, const char* name, Links links) {
  const MappedFile file(path_in_folder(folder, name, folder, links));
  check_first_bytes(file.first_bytes(), file.path(), FileUse::kJson);
  if (file.size() > kMaxTokenizerJson)
    throw DataError(str_cat(file.path(), ": has ", file.size(), " bytes, the limit is ", kMaxTokenizerJson));
  std::string text(file.size(), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(text.data(), text.size())));
  return text;
}

}  // namespace

std::unique_ptr<Tokenizer> open_json_tokenizer(const std::string& folder, const SpecialPieces& special,
                                               Links links) {
  const std::string text = read_tokenizer_file(folder, kTokenizerJson, links);
  return parse_json_tokenizer(without_byte_order_mark(text), folder + "/" + kTokenizerJson, special,
                              named_special_token(folder, "bos_token", links),
                              named_special_token(folder, "eos_token", links),
                              configured_tokens(folder, links));
}

std::string changed_by_tokenizer_config(const std::string& folder, std::string_view text, Links links) {
  const ConfiguredTokens configured = configured_tokens(folder, links);
  try {
    return changed_tokens(without_byte_order_mark(text), configured);
  } catch (const DataError& error) {
    throw DataError(str_cat(folder, "/", kTokenizerJson, ": ", error.what()));
  }
}

std::unique_ptr<Tokenizer> open_tekken_tokenizer(const std::string& folder, Links links) {
  const std::string text = read_tokenizer_file(folder, kTekkenJson, links);
  return parse_tekken_tokenizer(without_byte_order_mark(text), folder + "/" + kTekkenJson);
}

}  // namespace pesc
