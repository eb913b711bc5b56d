#include "runtime/chat/template_source.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>

#include "ops/core/check.h"
#include "runtime/filesystem/file_kind.h"
#include "runtime/hf/json_file.h"

namespace pesc {
namespace {

using nlohmann::json;

constexpr const char* kTemplateFile = "chat_template.jinja";
constexpr const char* kProcessorTemplate = "chat_template.json";  // of a multimodal processor
constexpr const char* kMoreTemplates = "additional_chat_templates";
constexpr const char* kTokenizerConfig = "tokenizer_config.json";
constexpr const char* kTokensMap = "special_tokens_map.json";
constexpr uint64_t kMaxJsonBytes = uint64_t{16} << 20;
constexpr uint64_t kMaxTemplateBytes = uint64_t{1} << 20;
constexpr std::array kNamed = std::to_array<const char*>(
    {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"});
constexpr std::array kBuiltin = std::to_array<std::string_view>({"published", "chatml", "llama3", "mistral"});

std::optional<json> read_if_there(const std::string& folder, const char* name, Links links) {
  if (folder.empty() || !folder_has(folder, name)) return std::nullopt;
  json document = read_json_file(folder, name, kMaxJsonBytes, links);
  if (!document.is_object()) throw DataError(str_cat(folder, "/", name, ": is no JSON object"));
  return document;
}

std::string read_text(const std::string& path) {
  const MappedFile file(path);
  check_first_bytes(file.first_bytes(), path, FileUse::kTemplate);
  if (file.size() > kMaxTemplateBytes)
    throw DataError(
        str_cat(path, ": has ", file.size(), " bytes; a chat template has at most ", kMaxTemplateBytes));
  std::string text(file.size(), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(text.data(), text.size())));
  return text;
}

// "</s>" or {"content": "</s>", ..}.
std::optional<std::string> token_text(const json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_object() && value.contains("content") && value.at("content").is_string())
    return value.at("content").get<std::string>();
  return std::nullopt;
}

class TokenCollector {
 public:
  explicit TokenCollector(const TemplateTokens& known) : out_(known) {}

  void read(const json& document) {
    for (const char* name : kNamed) {
      if (!document.contains(name)) continue;
      if (const auto text = token_text(document.at(name))) {
        std::erase_if(out_.named, [&](const auto& token) { return token.first == name; });
        out_.named.emplace_back(name, *text);
        add(*text);
      }
    }
    for (const char* name : {"additional_special_tokens", "extra_special_tokens"}) {
      if (!document.contains(name) || !document.at(name).is_structured()) continue;
      for (const json& token : document.at(name)) {
        if (const auto text = token_text(token)) add(*text);
      }
    }
    const auto added = document.find("added_tokens_decoder");
    if (added == document.end() || !added->is_object()) return;
    for (const json& token : *added) {
      const auto text = token_text(token);
      const auto special = token.is_object() ? token.find("special") : token.end();
      if (text && special != token.end() && special->is_boolean() && special->get<bool>()) add(*text);
    }
  }

  TemplateTokens finish() {
    for (const auto& [name, text] : out_.named) add(text);
    return std::move(out_);
  }

 private:
  void add(const std::string& text) {
    if (!text.empty() && std::ranges::find(out_.control, text) == out_.control.end())
      out_.control.push_back(text);
  }

  TemplateTokens out_;
};

// The template of tokenizer_config.json or chat_template.json: a text, or one of a list of {"name", "template"}.
std::optional<TemplateSource> in_config(const json& config, const std::string& file, ForTools for_tools) {
  const auto found = config.find("chat_template");
  if (found == config.end() || found->is_null()) return std::nullopt;
  if (found->is_string()) return TemplateSource{file + " (chat_template)", found->get<std::string>(), {}};
  std::vector<std::string> names;
  if (found->is_array()) {
    for (const std::string_view wanted : {for_tools == ForTools::kYes ? "tool_use" : "default", "default"}) {
      for (const json& one : *found) {
        if (!one.is_object() || !one.contains("name") || !one.at("name").is_string() ||
            !one.contains("template") || !one.at("template").is_string())
          throw DataError(
              str_cat(file, ": an element of chat_template is no {\"name\": .., \"template\": ..}"));
        if (one.at("name") == wanted)
          return TemplateSource{
              str_cat(file, " (chat_template \"", wanted, "\")"), one.at("template").get<std::string>(), {}};
      }
    }
    throw DataError(str_cat(
        file, ": chat_template has no template named \"default\"; give a file as data.chat_template"));
  }
  throw DataError(str_cat(file, ": chat_template is neither a text nor a list of named ones"));
}

std::optional<TemplateSource> in_folder(const std::string& folder, const std::optional<json>& config,
                                        ForTools for_tools, Links links) {
  if (folder.empty()) return std::nullopt;
  if (for_tools == ForTools::kYes && folder_has(folder, kMoreTemplates)) {
    const std::string more = folder + "/" + kMoreTemplates;
    if (folder_has(more, "tool_use.jinja")) {
      const std::string path = path_in_folder(more, "tool_use.jinja", more, links);
      return TemplateSource{path, read_text(path), {}};
    }
  }
  if (folder_has(folder, kTemplateFile)) {
    const std::string path = path_in_folder(folder, kTemplateFile, folder, links);
    return TemplateSource{path, read_text(path), {}};
  }
  const auto processor = read_if_there(folder, kProcessorTemplate, links);
  const std::string file = folder + "/" + kProcessorTemplate;
  std::optional<TemplateSource> own;
  if (processor) own = in_config(*processor, file, for_tools);
  if (!own && config) own = in_config(*config, folder + "/" + kTokenizerConfig, for_tools);
  if (!own && processor)
    throw DataError(
        str_cat(file,
                ": has no \"chat_template\", which is all that such a file is for; fetch it again, "
                "or remove it"));
  return own;
}

TemplateSource builtin(const std::string& name, const TemplateTokens& tokens) {
  // Which version of Mistral's format the tokenizer is for: as tekken.json says, else by its tokens. (A tekken.json without a list of
  // them has those of all versions.)
  const bool names_it = std::ranges::find(tokens.control, "[SYSTEM_PROMPT]") != tokens.control.end();
  const bool newer =
      name == "mistral" && (tokens.mistral_version > 0 ? tokens.mistral_version >= 7 : names_it);
  return {name + " (built in)",
          std::string(builtin_template(newer ? "mistral-v7" : name)),
          {},
          name == "published"};
}

}  // namespace

bool is_template_file(std::string_view setting) {
  return setting.find('/') != std::string_view::npos || setting.ends_with(".jinja");
}

bool is_template_setting(std::string_view setting) {
  return setting == "auto" || is_template_file(setting) ||
         std::ranges::find(kBuiltin, setting) != kBuiltin.end();
}

TemplateSource find_template(const std::string& setting, const std::string& folder,
                             const TemplateTokens& known, ForTools for_tools, Links links) {
  const std::optional<json> config = read_if_there(folder, kTokenizerConfig, links);
  const std::optional<json> map = read_if_there(folder, kTokensMap, links);
  TokenCollector collector(known);
  if (map) collector.read(*map);
  if (config) collector.read(*config);
  TemplateTokens tokens = collector.finish();

  TemplateSource source;
  if (setting == "auto") {
    if (auto own = in_folder(folder, config, for_tools, links)) {
      source = std::move(*own);
      source.in_folder = true;
    } else {
      const bool tekken = !folder.empty() && folder_has(folder, "tekken.json") &&
                          !folder_has(folder, "tokenizer.json") && !folder_has(folder, "tokenizer.model");
      source = builtin(tekken ? "mistral" : "published", tokens);
    }
  } else if (std::ranges::find(kBuiltin, setting) != kBuiltin.end()) {
    source = builtin(setting, tokens);
  } else if (is_template_file(setting)) {
    source = {setting, read_text(setting), {}};
  } else {
    throw UsageError(
        str_cat("data.chat_template is \"", setting,
                "\"; it is auto, published, chatml, llama3, mistral, or the path of a file (with a slash, "
                "or ending in .jinja)"));
  }
  source.tokens = std::move(tokens);
  return source;
}

}  // namespace pesc
