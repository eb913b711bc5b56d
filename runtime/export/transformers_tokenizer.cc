#include "runtime/export/transformers_tokenizer.h"

#include <algorithm>
#include <array>

#include "ops/core/check.h"

namespace pesc {
namespace {

using nlohmann::json;

// models/qwen2/tokenization_qwen2.py of transformers 5.24.0.
constexpr const char* kSplitOfQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kTokenOfQwen2 = "<|endoftext|>";

bool says(const json& object, const char* key, const json& value) {
  const auto at = object.find(key);
  return at != object.end() && *at == value;
}

// An absent key stands for it too.
bool is_unset(const json& object, const char* key, const json& value) {
  const auto at = object.find(key);
  return at == object.end() || at->is_null() || *at == value;
}

const json& part(const json& object, const char* key) {
  static const json kNone;
  const auto at = object.find(key);
  return at == object.end() ? kNone : *at;
}

bool is_split_of_qwen2(const json& step) {
  return says(step, "type", "Split") && says(step, "pattern", json::object({{"Regex", kSplitOfQwen2}})) &&
         says(step, "behavior", "Isolated") && says(step, "invert", false);
}

bool is_bytes_of_qwen2(const json& step) {
  return says(step, "type", "ByteLevel") && says(step, "add_prefix_space", false) &&
         says(step, "use_regex", false);
}

bool is_pre_tokenizer_of_qwen2(const json& step) {
  const json& steps = part(step, "pretokenizers");
  return says(step, "type", "Sequence") && steps.is_array() && steps.size() == 2 &&
         is_split_of_qwen2(steps[0]) && is_bytes_of_qwen2(steps[1]);
}

bool is_model_of_qwen2(const json& model) {
  return says(model, "type", "BPE") && is_unset(model, "dropout", 0.0) &&
         is_unset(model, "unk_token", nullptr) && is_unset(model, "continuing_subword_prefix", "") &&
         is_unset(model, "end_of_word_suffix", "") && is_unset(model, "fuse_unk", false) &&
         is_unset(model, "byte_fallback", false) && is_unset(model, "ignore_merges", false);
}

// The class makes special tokens anew, and with none of these.
bool is_plain(const json& added) {
  return std::ranges::all_of(std::array{"single_word", "lstrip", "rstrip", "normalized"},
                             [&](const char* key) { return says(added, key, false); });
}

}  // namespace

bool has_steps_of_qwen2(const json& tokenizer) {
  const json& added = part(tokenizer, "added_tokens");
  return says(part(tokenizer, "normalizer"), "type", "NFC") &&
         is_pre_tokenizer_of_qwen2(part(tokenizer, "pre_tokenizer")) &&
         says(part(tokenizer, "decoder"), "type", "ByteLevel") &&
         is_model_of_qwen2(part(tokenizer, "model")) && added.is_array() &&
         std::ranges::all_of(added, is_plain) && std::ranges::any_of(added, [](const json& token) {
           return says(token, "content", kTokenOfQwen2) && says(token, "special", true);
         });
}

bool adds_prefix_space(const json& tokenizer) {
  return says(part(tokenizer, "pre_tokenizer"), "add_prefix_space", true);
}

json parse_tokenizer_steps(std::string_view text, const std::string& path) {
  const auto is_kept = [](int, json::parse_event_t event, const json& key) {
    return event != json::parse_event_t::key || (key != "vocab" && key != "merges");
  };
  try {
    return json::parse(text, is_kept);
  } catch (const json::exception& error) {
    throw DataError(str_cat(path, ": ", error.what()));
  }
}

}  // namespace pesc
