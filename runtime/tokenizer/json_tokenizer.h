// The tokenizer of a tokenizer.json, with the ids, ranges and texts of the original library (PyPI's
// tokenizers 0.23.3). Its order: added tokens are cut out of the text; what lies between is normalised,
// searched for those added tokens that are normalised too, cut into pieces, and each piece is given to the
// model.
//
// "truncation" and "padding" of the file are left aside: the library's users switch them off, and rows have
// limits of their own.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "runtime/tokenizer/added_tokens.h"
#include "runtime/tokenizer/tokenizer.h"

namespace pesc {

// `text` is the file's content, `path` is for messages; `begin` and `end` are the names of the begin- and
// end-of-text tokens, empty for none; `configured` is what the files beside it say. Throws DataError.
[[nodiscard]] std::unique_ptr<Tokenizer> parse_json_tokenizer(std::string_view text, const std::string& path,
                                                              const SpecialPieces& special,
                                                              const std::string& begin,
                                                              const std::string& end,
                                                              const ConfiguredTokens& configured = {});

// The same of a tekken.json (Mistral's own form), whose texts begin with <s> and end with </s>.
[[nodiscard]] std::unique_ptr<Tokenizer> parse_tekken_tokenizer(std::string_view text,
                                                                const std::string& path);

// Reads tokenizer.json of a folder, the names of begin and end from its tokenizer_config.json or
// special_tokens_map.json, and flags of added tokens from tokenizer_config.json. Throws DataError, IoError;
// DataError also for a token that transformers would add because these files or added_tokens.json name it, and
// that tokenizer.json does not have among its added tokens.
[[nodiscard]] std::unique_ptr<Tokenizer> open_json_tokenizer(const std::string& folder,
                                                             const SpecialPieces& special, Links links);

// What tokenizer_config.json changes about the added tokens of `text`, the folder's tokenizer.json
// (changed_tokens). Throws DataError, IoError.
[[nodiscard]] std::string changed_by_tokenizer_config(const std::string& folder, std::string_view text,
                                                      Links links);

// Reads tekken.json of a folder. Throws DataError, IoError.
[[nodiscard]] std::unique_ptr<Tokenizer> open_tekken_tokenizer(const std::string& folder, Links links);

}  // namespace pesc
