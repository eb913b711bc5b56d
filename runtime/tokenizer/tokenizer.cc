#include "runtime/tokenizer/tokenizer.h"

#include <algorithm>

#include "ops/core/check.h"
#include "runtime/hf/content_digest.h"
#include "runtime/hf/mapped_file.h"
#include "runtime/tokenizer/json_tokenizer.h"
#include "runtime/tokenizer/sentencepiece_tokenizer.h"

namespace pesc {
namespace {

constexpr std::string_view kModelFile = "tokenizer.model";
constexpr std::string_view kJsonFile = "tokenizer.json";
constexpr std::string_view kTekkenFile = "tekken.json";

}  // namespace

std::string tokenizer_file(const std::string& folder) {
  if (folder_has(folder, kJsonFile)) return std::string(kJsonFile);
  if (folder_has(folder, kModelFile)) return std::string(kModelFile);
  if (folder_has(folder, kTekkenFile)) return std::string(kTekkenFile);
  throw DataError(str_cat(folder, ": has neither ", kJsonFile, " nor ", kModelFile, " (sentencepiece) nor ",
                          kTekkenFile, "; copy it from where the model came from"));
}

std::unique_ptr<Tokenizer> open_tokenizer(const std::string& folder, const SpecialPieces& special,
                                          Links links) {
  const std::string name = tokenizer_file(folder);
  if (name == kJsonFile) return open_json_tokenizer(folder, special, links);
  if (name == kTekkenFile) return open_tekken_tokenizer(folder, links);
  return open_sentencepiece_tokenizer(path_in_folder(folder, kModelFile, folder, links), special);
}

std::string tokenizer_digest(const std::string& folder, Links links) {
  const std::string name = tokenizer_file(folder);
  const MappedFile file(path_in_folder(folder, name, folder, links));
  std::string changed;
  if (name == kJsonFile) {
    const std::span<const std::byte> bytes = file.bytes();
    changed = changed_by_tokenizer_config(
        folder, std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()), links);
  }
  ContentDigest digest;
  digest.add(file.bytes().data(), file.bytes().size());
  digest.add(changed.data(), changed.size());
  return digest.hex();
}

std::string canonical_text(const Tokenizer& tokenizer, const std::string& text, int64_t most_tokens) {
  const EncodedStart start = tokenizer.encode_start(text, most_tokens);
  if (start.bytes < text.size()) return text;
  const std::vector<int32_t>& ids = start.ids;
  const bool unknown = std::ranges::any_of(ids, [&](int32_t id) { return tokenizer.is_unknown(id); });
  return unknown ? text : tokenizer.decode(ids);
}

void check_vocabulary(const Tokenizer& tokenizer, const ModelConfig& model) {
  const int64_t pieces = tokenizer.vocab_size();
  const std::string sizes =
      str_cat("the tokenizer has ", pieces, " pieces and the model a vocabulary of ", model.vocab_size);
  if (pieces > model.vocab_size) {
    throw DataError(
        str_cat(sizes, ": pieces beyond it have no embedding; use the tokenizer that belongs to the model"));
  }
  // Models pad their vocabulary, to a multiple of 64 or 128 or for tokens added later, by little.
  constexpr int64_t kPadding = 256;
  if (const int64_t spare = model.vocab_size - pieces; spare > kPadding && spare * 10 > pieces) {
    throw DataError(str_cat(sizes, ": too many to be padding; use the tokenizer that belongs to the model"));
  }
}

}  // namespace pesc
