// What the files of a model and of its tokenizer say about the tokens that begin, end and pad a text. Nothing
// is judged here but types and ranges; runtime/data/special_tokens.h compares what they say.
//
//   config.json, generation_config.json        bos_token_id, eos_token_id, pad_token_id
//   tokenizer_config.json                      bos_token, eos_token, pad_token, by their texts;
//                                              add_bos_token, add_eos_token; added_tokens_decoder, which
//                                              gives texts their ids
//   special_tokens_map.json                    the same texts
//   added_tokens.json                          texts and their ids
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/config.h"
#include "runtime/hf/mapped_file.h"
#include "runtime/tokenizer/tokenizer.h"

namespace pesc {

// One statement of one file.
struct SpecialToken {
  enum class Source { kModel, kGeneration, kTokenizer };  // config.json, generation_config.json, the others
  std::string file, key;
  int64_t id = -1;   // -1: none of the files gives the text an id; the tokenizer may have a piece
  std::string text;  // empty: given by its id
  Source source = Source::kModel;
};

// An id that a file gives to a text.
struct AddedTokenId {
  std::string file, text;
  int64_t id = -1;  // -1: what stands there is no id
  std::string written;
};

// add_bos_token or add_eos_token.
struct AddsToken {
  std::string file;
  bool adds = false;
};

struct SpecialTokenFiles {
  std::string tokenizer = "tokenizer.model";  // the name of the tokenizer's own file
  std::vector<SpecialToken> begins, ends, pads;
  std::vector<AddedTokenId> added;  // in the order in which they count: the first of a text does
  std::vector<std::string> texts;   // of all special tokens of the tokenizer's own files
  std::optional<AddsToken> adds_begin, adds_end;

  // The pieces that the tokenizer must not produce from a text.
  [[nodiscard]] SpecialPieces pieces() const;
};

// config.json's come from `model`; generation_config.json is read from `model_folder`, the others from
// `tokenizer_folder`, where they are. Either folder may be empty: none. DataError for a file that is no JSON,
// a value of another type, or an id of begin, end or padding outside the vocabulary, whichever file gives it.
[[nodiscard]] SpecialTokenFiles read_special_tokens(const ModelConfig& model, const std::string& model_folder,
                                                    const std::string& tokenizer_folder,
                                                    Links links = Links::kInside);

}  // namespace pesc
