// Small tokenizers with the original library's answers (fixtures.jsonl, written by make_fixtures.py).
#pragma once

#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/tokenizer/json_tokenizer.h"

namespace pesc {

class TokenizerFixtures {
 public:
  TokenizerFixtures() {
    const std::string path = std::string(PESC_SOURCE_DIR) + "/tests/runtime/tokenizer/fixtures.jsonl";
    std::ifstream file(path);
    std::string line;
    if (!std::getline(file, line)) throw std::runtime_error("cannot read " + path);
    head_ = nlohmann::json::parse(line);
    while (std::getline(file, line)) all_.push_back(nlohmann::json::parse(line));
  }
  [[nodiscard]] const std::vector<nlohmann::json>& all() const { return all_; }
  [[nodiscard]] const nlohmann::json& texts() const { return head_["texts"]; }
  [[nodiscard]] const nlohmann::json& parts(const std::string& name) const {
    for (const auto& fixture : all_) {
      if (fixture["name"] == name) return fixture["parts"];
    }
    throw std::runtime_error("no fixture " + name);
  }
  // The tokenizer.json, as make_fixtures.py's document() makes it.
  [[nodiscard]] nlohmann::json document(const nlohmann::json& parts) const {
    nlohmann::json model = head_["models"][parts["model"].get<std::string>()];
    size_t size = model["vocab"].size();
    nlohmann::json added = nlohmann::json::array();
    for (nlohmann::json token : parts.value("added", nlohmann::json::array())) {
      const std::string content = token["content"];
      const bool known = model["vocab"].contains(content);
      token["id"] = known ? model["vocab"][content] : nlohmann::json(size++);
      added.push_back(token);
    }
    model["type"] = "BPE";
    if (parts.contains("flags")) model.update(parts["flags"]);
    nlohmann::json document{{"version", "1.0"}, {"added_tokens", added}, {"model", model}};
    for (const char* name : {"normalizer", "pre_tokenizer", "post_processor", "decoder"})
      document[name] = parts.value(name, nlohmann::json());
    return document;
  }
  [[nodiscard]] std::unique_ptr<Tokenizer> open(const std::string& name) const {
    return parse_json_tokenizer(document(parts(name)).dump(), name, {}, "", "");
  }

 private:
  nlohmann::json head_;
  std::vector<nlohmann::json> all_;
};

inline const TokenizerFixtures& tokenizer_fixtures() {
  static const TokenizerFixtures fixtures;
  return fixtures;
}

}  // namespace pesc
