#include "runtime/tokenizer/json_tokenizer_parts.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <unordered_set>

#include "ops/core/check.h"
#include "runtime/text/printable.h"
#include "runtime/tokenizer/tokenizer_file.h"

namespace pesc {
namespace {

using nlohmann::json;

constexpr size_t kLongestAddedToken = 4096;
constexpr size_t kMostAddedTokens = 200'000;
constexpr size_t kMostAddedBytes = size_t{16} << 20;  // of all of them, as the normalizer leaves them

const json& part_of(const json& document, const char* name) {
  static const json none;
  const auto found = document.find(name);
  return found == document.end() ? none : *found;
}

bool flag(const json& object, const char* name, const char* of) {
  const json& value = part_of(object, name);
  if (value.is_null()) return false;
  if (!value.is_boolean()) throw DataError(str_cat(of, ": \"", name, "\" is neither true nor false"));
  return value.get<bool>();
}

void read_model(const json& model, BpeParts& parts) {
  if (!model.is_object()) throw DataError("has no \"model\"");
  const json& type = part_of(model, "type");
  if (!type.is_null() && type != "BPE") {
    throw DataError(str_cat("model ", printable(type.is_string() ? type.get<std::string>() : type.dump()),
                            ": is not supported; supported is BPE"));
  }
  if (!model.contains("vocab") || !model.contains("merges"))
    throw DataError("model: has no \"vocab\" or no \"merges\"");
  for (const char* name : {"vocab", "merges"}) {
    if (model[name] != true) throw DataError(str_cat("model: \"", name, "\" is of another type"));
  }
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const json& value = part_of(model, name);
    if (!value.is_null() && value != "") throw DataError(str_cat("model: ", name, " is not supported"));
  }
  if (const json& dropout = part_of(model, "dropout"); !dropout.is_null() && dropout != 0)
    throw DataError("model: dropout is not supported");
  if (const json& unk = part_of(model, "unk_token"); !unk.is_null()) {
    if (!unk.is_string()) throw DataError("model: \"unk_token\" is no string");
    parts.has_unk_token = true;
    parts.unk_token = unk.get<std::string>();
  }
  parts.fuse_unk = flag(model, "fuse_unk", "model");
  parts.byte_fallback = flag(model, "byte_fallback", "model");
  parts.ignore_merges = flag(model, "ignore_merges", "model");
}

// True where texts may get other tokens.
bool take_configured(const ConfiguredTokens& configured, AddedToken& token) {
  const auto found = configured.flags.find(token.content);
  if (found == configured.flags.end()) return false;
  const AddedToken& entry = found->second;
  const bool changes = matching_flags(entry) != matching_flags(token) || (entry.special && !token.special);
  token.single_word = entry.single_word;
  token.lstrip = entry.lstrip;
  token.rstrip = entry.rstrip;
  token.normalized = entry.normalized;
  token.special |= entry.special;
  return changes;
}

AddedToken read_added_token(const json& item) {
  const json& content = part_of(item, "content");
  if (!item.is_object() || !content.is_string()) throw DataError("added_tokens: an entry has no \"content\"");
  AddedToken token;
  token.content = content.get<std::string>();
  if (token.content.size() > kLongestAddedToken)
    throw DataError(str_cat("added_tokens: a token has ", token.content.size(), " bytes; at most ",
                            kLongestAddedToken, " are supported"));
  const std::string name = str_cat("added token '", printable(token.content), "'");
  token.single_word = flag(item, "single_word", name.c_str());
  token.lstrip = flag(item, "lstrip", name.c_str());
  token.rstrip = flag(item, "rstrip", name.c_str());
  token.normalized = flag(item, "normalized", name.c_str());
  token.special = flag(item, "special", name.c_str());
  const json& id = part_of(item, "id");
  if (!id.is_number_unsigned()) throw DataError(str_cat(name, ": \"id\" is no token id"));
  return token;
}

// The library takes a token's id from the vocabulary, or else the next free one, whatever the file says; a
// file that says otherwise would have other ids here than its model has rows.
void read_added_tokens(const json& list, const SpecialPieces& special, const ConfiguredTokens& configured,
                       JsonTokenizerParts& parts) {
  if (list.is_null()) return;
  if (!list.is_array() || list.size() > kMostAddedTokens)
    throw DataError("added_tokens: is no list, or too long");
  auto next = static_cast<int32_t>(parts.model.pieces());
  size_t bytes = 0;
  std::unordered_map<std::string, int32_t> ids;
  std::unordered_map<int32_t, size_t> places;
  for (const json& item : list) {
    AddedToken token = read_added_token(item);
    if (token.content.empty()) continue;
    (void)take_configured(configured, token);
    token.special |= std::ranges::find(special.texts, token.content) != special.texts.end();
    const auto known = ids.find(token.content);
    token.id = known != ids.end() ? known->second : parts.model.find(token.content);
    if (token.id < 0) token.id = next++;
    if (item["id"].get<uint64_t>() != static_cast<uint64_t>(token.id)) {
      throw DataError(str_cat("added token '", printable(token.content), "': has the id ",
                              item["id"].get<uint64_t>(),
                              ", but the vocabulary and the tokens before it make it ", token.id));
    }
    token.special |= std::ranges::find(special.ids, int64_t{token.id}) != special.ids.end();
    token.matched = token.content;
    if (token.normalized) {
      AlignedText storage;
      Piece piece{token.content, nullptr, 0, 0};
      for (const auto& normalizer : parts.normalizers) piece = normalizer->normalize(piece, storage);
      token.matched = std::string(piece.text);
    }
    bytes += token.matched.size();
    if (bytes > kMostAddedBytes)
      throw DataError(str_cat("added tokens up to '", printable(token.content), "': have ", bytes,
                              " bytes as the normalizer leaves them; at most ", kMostAddedBytes,
                              " are supported"));
    ids.insert_or_assign(token.content, token.id);
    if (const auto place = places.find(token.id); place != places.end()) {
      parts.added[place->second] = std::move(token);
    } else {
      places.emplace(token.id, parts.added.size());
      parts.added.push_back(std::move(token));
    }
  }
}

// Begin and end of a text, padding and the unknown token may be pieces of the vocabulary: begin and end are put
// by their ids, and no user's text is searched for special tokens.
void check_named(const std::vector<NamedToken>& named, const JsonTokenizerParts& parts) {
  if (named.empty()) return;
  std::unordered_set<std::string_view> added;
  for (const AddedToken& token : parts.added) added.insert(token.content);
  for (const NamedToken& token : named) {
    if (added.contains(token.content)) continue;
    if (token.has_role && parts.model.find(token.content) >= 0) continue;
    throw DataError(str_cat("added_tokens has no ", in_quotes(token.content), ", which ", token.place,
                            " names, so that transformers would match it in texts as one token; add it to "
                            "added_tokens with its id, or save the tokenizer anew with save_pretrained of "
                            "transformers"));
  }
}

}  // namespace

JsonTokenizerParts read_json_tokenizer_parts(std::string_view text, const SpecialPieces& special,
                                             const ConfiguredTokens& configured) {
  TokenizerFile file = parse_tokenizer_file(text);
  const json& version = part_of(file.rest, "version");
  if (!version.is_null() && version != "1.0")
    throw DataError(str_cat("\"version\" is ", printable(version.dump()), "; known is \"1.0\""));
  read_model(part_of(file.rest, "model"), file.model);
  std::vector<std::unique_ptr<PreTokenizer>> pre_tokenizers =
      read_pre_tokenizers(part_of(file.rest, "pre_tokenizer"));
  const bool byte_level = !pre_tokenizers.empty() && pre_tokenizers.back()->is_byte_level();
  JsonTokenizerParts parts{read_normalizers(part_of(file.rest, "normalizer")),
                           std::move(pre_tokenizers),
                           Bpe(std::move(file.model), byte_level),
                           {},
                           {},
                           {}};
  if (parts.model.takes_bytes()) parts.pre_tokenizers.back()->keep_bytes();
  parts.post_processor.read(part_of(file.rest, "post_processor"));
  parts.decoders = read_decoders(part_of(file.rest, "decoder"));
  read_added_tokens(part_of(file.rest, "added_tokens"), special, configured, parts);
  check_named(configured.named, parts);
  return parts;
}

std::string changed_tokens(std::string_view text, const ConfiguredTokens& configured) {
  std::string all;
  if (configured.flags.empty()) return all;
  const TokenizerFile file = parse_tokenizer_file(text);
  const json& list = part_of(file.rest, "added_tokens");
  if (!list.is_array()) return all;
  for (const json& item : list) {
    AddedToken token = read_added_token(item);
    const bool was_special = token.special;
    if (!take_configured(configured, token)) continue;
    all += token.content;
    all += '\0';
    for (const bool flag : matching_flags(token)) all += flag ? '1' : '0';
    if (token.special && !was_special) all += '\0';
  }
  return all;
}

}  // namespace pesc
