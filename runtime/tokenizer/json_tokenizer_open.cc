#include <nlohmann/json.hpp>

#include "ops/core/check.h"
#include "runtime/filesystem/file_kind.h"
#include "runtime/hf/json_file.h"
#include "runtime/hf/mapped_file.h"
#include "runtime/tokenizer/json_tokenizer.h"

namespace pesc {
namespace {

using nlohmann::json;

constexpr const char* kTokenizerJson = "tokenizer.json";
constexpr const char* kTekkenJson = "tekken.json";
constexpr uint64_t kMaxTokenizerJson = uint64_t{256} << 20;
constexpr uint64_t kMaxTokenizerConfig = uint64_t{16} << 20;

// "</s>" or {"content": "</s>", ...}; empty where no file says it.
std::string named_special_token(const std::string& folder, const char* key, Links links) {
  for (const char* name : {"tokenizer_config.json", "special_tokens_map.json"}) {
    if (!folder_has(folder, name)) continue;
    const json document = read_json_file(folder, name, kMaxTokenizerConfig, links);
    if (!document.is_object() || !document.contains(key)) continue;
    const json& value = document[key];
    if (value.is_string()) return value.get<std::string>();
    if (value.is_object() && value.contains("content") && value["content"].is_string())
      return value["content"].get<std::string>();
  }
  return {};
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
                              named_special_token(folder, "eos_token", links));
}

std::unique_ptr<Tokenizer> open_tekken_tokenizer(const std::string& folder, Links links) {
  const std::string text = read_tokenizer_file(folder, kTekkenJson, links);
  return parse_tekken_tokenizer(without_byte_order_mark(text), folder + "/" + kTekkenJson);
}

}  // namespace pesc
