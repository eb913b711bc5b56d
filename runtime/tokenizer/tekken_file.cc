// A tekken.json, Mistral's own form: pieces as base64 of their bytes in the order of their ranks, and control
// tokens, whose ids stand before all others. Two pieces merge where the file has what they make, the lowest
// rank first; that is byte-pair encoding with these merges.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "ops/core/check.h"
#include "runtime/text/json_mistake.h"
#include "runtime/text/printable.h"
#include "runtime/tokenizer/json_tokenizer_parts.h"

namespace pesc {
namespace {

using nlohmann::json;

// The control tokens of a file that names none; the others are called <SPECIAL_20> and on.
constexpr const char* kTekkenControls[] = {"<unk>",
                                           "<s>",
                                           "</s>",
                                           "[INST]",
                                           "[/INST]",
                                           "[AVAILABLE_TOOLS]",
                                           "[/AVAILABLE_TOOLS]",
                                           "[TOOL_RESULTS]",
                                           "[/TOOL_RESULTS]",
                                           "[TOOL_CALLS]",
                                           "[IMG]",
                                           "<pad>",
                                           "[IMG_BREAK]",
                                           "[IMG_END]",
                                           "[PREFIX]",
                                           "[MIDDLE]",
                                           "[SUFFIX]",
                                           "[SYSTEM_PROMPT]",
                                           "[/SYSTEM_PROMPT]",
                                           "[TOOL_CONTENT]"};

// Every cut of a piece into two is looked up.
constexpr size_t kMostPieceBytes = 4096;

std::string from_base64(const std::string& text, size_t piece) {
  std::string out;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text.substr(0, text.find('='))) {
    constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const size_t digit = kDigits.find(c);
    if (digit == std::string_view::npos)
      throw DataError(str_cat("vocab: the bytes of piece ", piece, " are no base64"));
    bits = bits << 6 | static_cast<uint32_t>(digit);
    if ((count += 6) >= 8) out += static_cast<char>(bits >> (count -= 8));
  }
  return out;
}

std::string in_alphabet(std::string_view bytes) {
  std::string name;
  for (const char c : bytes) unicode::append_utf8(byte_level_char(static_cast<unsigned char>(c)), name);
  return name;
}

size_t config_number(const json& config, const char* name) {
  constexpr uint64_t kMostTekken = uint64_t{1} << 20;
  if (!config.contains(name) || !config[name].is_number_unsigned() ||
      config[name].get<uint64_t>() > kMostTekken)
    throw DataError(str_cat("config: \"", name, "\" is no number from 0 to ", kMostTekken));
  return config[name].get<size_t>();
}

// "v3" is 3.
int format_version(const json& config) {
  const auto found = config.find("version");
  if (found == config.end() || found->is_null()) return 0;
  const std::string text = found->is_string() ? found->get<std::string>() : "";
  const bool good = text.size() >= 2 && text.size() <= 4 && text[0] == 'v' &&
                    text.find_first_not_of("0123456789", 1) == std::string::npos;
  if (!good)
    throw DataError(str_cat("config: \"version\" is ", printable(found->dump()), ", not such as \"v13\""));
  return std::stoi(text.substr(1));
}

std::vector<AddedToken> read_controls(const json& document, size_t count) {
  std::vector<AddedToken> out;
  const json list = document.value("special_tokens", json());
  if (!list.is_null() && (!list.is_array() || list.size() > count))
    throw DataError("special_tokens: is no list, or too long");
  const size_t named = list.is_array() ? list.size() : std::size(kTekkenControls);
  for (size_t i = 0; i < count; ++i) {
    AddedToken token;
    token.id = static_cast<int32_t>(i);
    token.special = true;
    if (i >= named) {
      token.content = str_cat("<SPECIAL_", i, ">");
    } else if (!list.is_array()) {
      token.content = kTekkenControls[i];
    } else {
      const json& item = list[i];
      if (!item.is_object() || item.value("rank", json()) != i ||
          !item.value("token_str", json()).is_string())
        throw DataError(str_cat("special_tokens: entry ", i, " has no \"token_str\", or another rank"));
      token.content = item["token_str"].get<std::string>();
    }
    token.matched = token.content;
    out.push_back(std::move(token));
  }
  return out;
}

}  // namespace

JsonTokenizerParts read_tekken_parts(std::string_view text) {
  if (text.find('\0') != std::string_view::npos) throw DataError("holds a zero byte");
  json document;
  try {
    document = json::parse(text);
  } catch (const json::parse_error& error) {
    throw DataError(str_cat("is not valid JSON at byte ", error.byte, ": ",
                            json_mistake(text, error.byte, error.what(), JsonText::kFile)));
  } catch (const json::exception& error) {
    throw DataError(str_cat("is no JSON: ", printable(error.what())));
  }
  if (!document.is_object() || !document.contains("config") || !document["config"].is_object() ||
      !document.contains("vocab") || !document["vocab"].is_array())
    throw DataError("has no \"config\" or no \"vocab\"");
  const json& config = document["config"];
  const size_t controls = config_number(config, "default_num_special_tokens");
  const size_t size = config_number(config, "default_vocab_size");
  if (size < controls || size - controls > document["vocab"].size())
    throw DataError(str_cat("vocab: has ", document["vocab"].size(), " pieces; ", size, " with ", controls,
                            " control tokens are said"));
  if (!config.contains("pattern") || !config["pattern"].is_string())
    throw DataError("config: \"pattern\" is no text");
  std::vector<AddedToken> added = read_controls(document, controls);
  BpeParts model;
  model.ignore_merges = true;
  model.pieces = size;
  for (const AddedToken& token : added) model.names.push_back(token.content);
  std::unordered_map<std::string, size_t> ranks;
  std::vector<std::string> pieces;
  for (size_t i = 0; i < size - controls; ++i) {
    const json& item = document["vocab"][i];
    if (!item.is_object() || item.value("rank", json()) != i ||
        !item.value("token_bytes", json()).is_string())
      throw DataError(str_cat("vocab: piece ", i, " has no \"token_bytes\", or another rank"));
    pieces.push_back(from_base64(item["token_bytes"].get<std::string>(), i));
    if (pieces.back().empty() || pieces.back().size() > kMostPieceBytes)
      throw DataError(
          str_cat("vocab: piece ", i, " has ", pieces.back().size(), " bytes, not 1 to ", kMostPieceBytes));
    if (!ranks.emplace(pieces.back(), i).second) throw DataError(str_cat("vocab: piece ", i, " comes twice"));
    model.names.push_back(in_alphabet(pieces.back()));
  }
  MergeCount merges;
  for (const std::string& piece : pieces) {
    std::vector<std::pair<size_t, size_t>> halves;
    for (size_t cut = 1; cut < piece.size(); ++cut) {
      const auto left = ranks.find(piece.substr(0, cut));
      const auto right = left == ranks.end() ? left : ranks.find(piece.substr(cut));
      if (right == ranks.end()) continue;
      merges.add(piece.size());
      halves.emplace_back(left->second, right->second);
    }
    std::ranges::sort(halves);
    for (const auto& [left, right] : halves)
      model.merges.emplace_back(model.names[controls + left], model.names[controls + right]);
  }
  const json split = {{"type", "Split"},
                      {"pattern", {{"Regex", config["pattern"]}}},
                      {"behavior", "Isolated"},
                      {"invert", false}};
  const json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  JsonTokenizerParts parts{
      {},
      read_pre_tokenizers({{"type", "Sequence"}, {"pretokenizers", {split, byte_level}}}),
      Bpe(std::move(model), true),
      std::move(added),
      {},
      read_decoders(byte_level),
      0};
  parts.mistral_version = format_version(config);
  if (parts.model.takes_bytes()) parts.pre_tokenizers.back()->keep_bytes();
  parts.post_processor.read(json::parse(R"({"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
      "special_tokens": {"<s>": {"ids": [1]}}})"));
  return parts;
}

}  // namespace pesc
