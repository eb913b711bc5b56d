#include "runtime/export/export_tokenizer.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <unordered_set>
#include <vector>

#include "ops/core/check.h"
#include "runtime/chat/model_templates.h"
#include "runtime/chat/template_source.h"
#include "runtime/export/python_files.h"
#include "runtime/export/transformers_tokenizer.h"
#include "runtime/hf/json_file.h"
#include "runtime/hf/mapped_file.h"
#include "runtime/tokenizer/exact_tokenizer_json.h"

namespace pesc {
namespace {

constexpr const char* kJson = "tokenizer.json";
constexpr const char* kSentencePiece = "tokenizer.model";
constexpr const char* kTekken = "tekken.json";
constexpr const char* kConfig = "tokenizer_config.json";
constexpr const char* kTemplate = "chat_template.jinja";
constexpr const char* kProcessorTemplate = "chat_template.json";
constexpr const char* kMoreTemplates = "additional_chat_templates";
constexpr uint64_t kMostConfig = 16 << 20;

// What else a tokenizer's folder may hold of it. They are copied as they are.
constexpr std::array kFiles = {kSentencePiece,      kJson,        kTekken,     "special_tokens_map.json",
                               "added_tokens.json", "vocab.json", "merges.txt"};

// Keys of tokenizer_config.json that name another class, or change what tokenizer.json says.
constexpr std::array kOfOtherClasses = {
    "auto_map",   "add_bos_token",   "add_eos_token", "add_prefix_space",     "legacy",
    "from_slow",  "sp_model_kwargs", "use_fast",      "tokenizer_file",       "backend",
    "vocab_file", "name_or_path",    "is_local",      "split_special_tokens", "fix_mistral_regex"};

std::string read_text(const MappedFile& file) {
  std::string text(file.size(), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(text.data(), text.size())));
  return text;
}

void copy_file(const std::string& folder, const std::string& name, const std::string& to, Links links,
               ExportFolder& out) {
  const MappedFile file(path_in_folder(folder, name, folder, links));
  out.add_file(to, [&](const ByteSink& sink) {
    constexpr uint64_t kBlock = 1 << 20;
    std::vector<std::byte> block;
    for (uint64_t at = 0; at < file.size(); at += kBlock) {
      block.resize(std::min(kBlock, file.size() - at));
      file.read_at(at, block);
      sink(block);
    }
  });
}

// The added tokens of a tokenizer.json that is made here have no flags but `special`. Those that the base's configuration
// gives them would count in transformers in their place; sentencepiece, which the run was tokenised with, has none. What
// that configuration adds and the made file does not (<unk>, which is a piece) goes.
void same_tokens_as_made(nlohmann::ordered_json& config, const std::string& made_json) {
  const auto entries = config.find("added_tokens_decoder");
  if (entries == config.end() || !entries->is_object()) return;
  const nlohmann::json document = nlohmann::json::parse(made_json);
  std::unordered_set<std::string> made;
  for (const auto& token : document.at("added_tokens")) made.insert(token.at("content").get<std::string>());
  for (auto entry = entries->begin(); entry != entries->end();) {
    const bool named = entry->is_object() && entry->contains("content") && entry->at("content").is_string();
    if (named && !made.contains(entry->at("content").get<std::string>())) {
      entry = entries->erase(entry);
      continue;
    }
    if (entry->is_object()) {
      for (const char* flag : {"lstrip", "normalized", "rstrip", "single_word"}) (*entry)[flag] = false;
    }
    ++entry;
  }
}

}  // namespace

ExportTokenizer::ExportTokenizer(const Job& job, TokenizerJson json)
    : job_(job), folder_(job.config.model.tokenizer), loads_json_(folder_has(folder_, kJson)) {
  if (!loads_json_) make_json(json);
  if (loads_json_) look_at_steps();
  make_template();
}

void ExportTokenizer::make_json(TokenizerJson wanted) {
  if (wanted == TokenizerJson::kNone) return;
  if (const std::string file = tokenizer_file(folder_); file != kSentencePiece) {
    why_no_json_ = str_cat("'", folder_, "' has ", file, " and no ", kJson, ", and none is made of it");
    if (wanted == TokenizerJson::kIfExact) return;
    throw DataError(str_cat(why_no_json_,
                            ", so that transformers would not load the tokenizer; use --format PEFT, "
                            "which brings ",
                            file, " alone"));
  }
  const MappedFile model(path_in_folder(folder_, kSentencePiece, folder_, job_.config.model.links));
  try {
    made_json_ = exact_tokenizer_json(read_text(model), *job_.tokenizer, model.path());
    loads_json_ = true;
  } catch (const DataError& error) {
    why_no_json_ = error.what();
    if (wanted == TokenizerJson::kRequired) {
      throw DataError(
          str_cat(why_no_json_,
                  ", so that transformers would give other tokens than the run was trained on; use "
                  "--format PEFT, or CAMELIDAE, which bring tokenizer.model alone"));
    }
  }
}

void ExportTokenizer::look_at_steps() {
  std::string text = made_json_, path = str_cat(folder_, "/", kJson);
  if (text.empty()) {
    const MappedFile file(path_in_folder(folder_, kJson, folder_, job_.config.model.links));
    text = read_text(file);
    path = file.path();
  }
  const nlohmann::json steps = parse_tokenizer_steps(text, path);
  adds_prefix_space_ = adds_prefix_space(steps);
  // A PESC model is of type pesc_qwen2.
  names_class_ = job_.model.family == Family::kQwen2 && job_.config.pesc.mode != TrainMode::kPesc &&
                 !has_steps_of_qwen2(steps);
}

void ExportTokenizer::make_template() {
  TemplateSource source =
      find_template(job_.config.data.chat_template, folder_, template_tokens(*job_.tokenizer), ForTools::kNo,
                    job_.config.model.links);
  keeps_template_ = source.in_folder;
  // Tokenizers of transformers do not read a processor's file.
  const bool of_processor =
      source.in_folder && source.name.starts_with(str_cat(folder_, "/", kProcessorTemplate));
  if (of_processor || (!source.in_folder && !source.published)) made_template_ = std::move(source.text);
}

std::string ExportTokenizer::config_text() const {
  nlohmann::ordered_json config = nlohmann::ordered_json::object();
  if (folder_has(folder_, kConfig)) {
    const nlohmann::json there = read_json_file(folder_, kConfig, kMostConfig, job_.config.model.links);
    if (!there.is_object()) throw DataError(str_cat(folder_, "/", kConfig, ": is no JSON object"));
    config = there;
  }
  if (!keeps_template_) config.erase("chat_template");
  if (loads_json_) {
    for (const char* key : kOfOtherClasses) config.erase(key);
    config["tokenizer_class"] = "PreTrainedTokenizerFast";
    config["clean_up_tokenization_spaces"] = false;
    if (adds_prefix_space_) config["add_prefix_space"] = true;
    if (!made_json_.empty()) same_tokens_as_made(config, made_json_);
    if (names_class_) config["auto_map"]["AutoTokenizer"] = {nullptr, "tokenization_pesc.PescTokenizerFast"};
  }
  const auto name = [&](const char* key, int32_t id) {
    if (id >= 0 && (!config.contains(key) || config.at(key).is_null()))
      config[key] = job_.tokenizer->piece(id);
  };
  name("bos_token", job_.tokenizer->bos_id());
  name("eos_token", job_.tokenizer->eos_id());
  return config.dump(2) + "\n";
}

void ExportTokenizer::add_to(ExportFolder& folder, const std::string& prefix) const {
  const Links links = job_.config.model.links;
  for (const std::string name : kFiles) {
    // Transformers takes a Mistral model's tekken.json before tokenizer.json, and with it neither template nor class of ours,
    // where mistral-common is installed (seen in 5.24.0).
    if (name == kTekken && loads_json_) continue;
    if (folder_has(folder_, name)) copy_file(folder_, name, prefix + name, links, folder);
  }
  if (!made_json_.empty()) folder.add_file(prefix + kJson, made_json_);
  if (loads_json_ || folder_has(folder_, kConfig)) folder.add_file(prefix + kConfig, config_text());
  if (names_class_) {
    const PythonFile file = tokenizer_python_file();
    folder.add_file(str_cat(prefix, file.name), file.text);
  }
  if (!made_template_.empty()) folder.add_file(prefix + kTemplate, made_template_);
  if (!keeps_template_) return;
  if (folder_has(folder_, kTemplate)) copy_file(folder_, kTemplate, prefix + kTemplate, links, folder);
  const std::string more = str_cat(folder_, "/", kMoreTemplates);
  if (!folder_has(folder_, kMoreTemplates) || !folder_has(more, "tool_use.jinja")) return;
  folder.add_folder(prefix + kMoreTemplates);
  copy_file(more, "tool_use.jinja", str_cat(prefix, kMoreTemplates, "/tool_use.jinja"), links, folder);
}

}  // namespace pesc
