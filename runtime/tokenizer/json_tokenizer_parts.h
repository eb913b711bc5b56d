// What a tokenizer.json is made of.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/added_tokens.h"
#include "runtime/tokenizer/bpe.h"
#include "runtime/tokenizer/normalizer.h"
#include "runtime/tokenizer/post_processor.h"
#include "runtime/tokenizer/pre_tokenizer.h"
#include "runtime/tokenizer/token_decoder.h"
#include "runtime/tokenizer/tokenizer.h"

namespace pesc {

struct JsonTokenizerParts {
  std::vector<std::unique_ptr<Normalizer>> normalizers;
  std::vector<std::unique_ptr<PreTokenizer>> pre_tokenizers;
  Bpe model;
  std::vector<AddedToken> added;  // one an id
  PostProcessor post_processor;
  std::vector<std::unique_ptr<TokenDecoder>> decoders;
  int mistral_version = 0;  // 3 of a tekken.json of "v3"; 0: another file, or it says none
};

// Throws DataError, which does not name the file.
[[nodiscard]] JsonTokenizerParts read_json_tokenizer_parts(std::string_view text,
                                                           const SpecialPieces& special,
                                                           const ConfiguredTokens& configured = {});

// The tokens of the file whose flags `configured` changes so that texts get other tokens, each with its
// flags; empty: none. A token that becomes special is one of them: it is matched in no user's text any more. Throws DataError, which does not name the file.
[[nodiscard]] std::string changed_tokens(std::string_view text, const ConfiguredTokens& configured);

// Of a tekken.json (Mistral's own form).
[[nodiscard]] JsonTokenizerParts read_tekken_parts(std::string_view text);

}  // namespace pesc
