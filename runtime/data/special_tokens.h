// Where a text begins and ends, from all the files that say so, checked once when a model is opened.
//
//   begin   the tokenizer's begin-of-text token, which the template puts in front of every text; -1: none
//   end     the tokenizer's end-of-text token, which is learned behind every answer
//   stops   whatever ends an answer in generation: all eos_token_id of config.json and
//   generation_config.json, and
//           the eos_token of tokenizer.model, tokenizer_config.json and special_tokens_map.json
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/hf/mapped_file.h"

namespace pesc {

// One statement of one file.
struct SpecialToken {
  enum class Source { kModel, kGeneration, kTokenizer };  // config.json, generation_config.json, the others
  std::string file, key;
  int64_t id = -1;  // -1: given by its text
  std::string text;
  Source source = Source::kModel;
};

// What the files beside weights and tokenizer say of begin and end.
struct SpecialTokenFiles {
  std::vector<SpecialToken> begins, ends;
  std::vector<std::string> texts;  // of all special tokens of the tokenizer's own files

  // What no text may give.
  [[nodiscard]] SpecialPieces pieces() const;
};

// config.json's come from `model`; generation_config.json is read from `model_folder`, tokenizer_config.json
// and special_tokens_map.json from `tokenizer_folder`, where they are. Either folder may be empty: none.
// DataError for a file that is no JSON, a value of another type, or an id outside the vocabulary.
[[nodiscard]] SpecialTokenFiles read_special_tokens(const ModelConfig& model, const std::string& model_folder,
                                                    const std::string& tokenizer_folder,
                                                    Links links = Links::kInside);

struct SpecialTokens {
  int32_t begin = -1;
  int32_t end = -1;
  std::vector<int64_t> stops;         // ascending, each once
  std::vector<std::string> warnings;  // whole sentences
};

// DataError, with file and value, where begin differs from config.json's, where an id lies outside the
// vocabulary, or where config.json and generation_config.json name ends and none of them is the one that is
// learned: nothing would end an answer.
[[nodiscard]] SpecialTokens agree_on_special_tokens(const SpecialTokenFiles& files,
                                                    const Tokenizer& tokenizer, const ModelConfig& model);

}  // namespace pesc
