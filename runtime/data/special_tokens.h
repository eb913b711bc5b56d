// Where a text begins and ends, from all the files that say so, compared once when a model is opened.
//
//   begin   the tokenizer's begin-of-text token, which the template puts in front of every text; -1: none
//   end     the tokenizer's end-of-text token, which is learned behind every answer
//   stops   every token that ends an answer in generation: all eos_token_id of config.json and
//           generation_config.json, the eos_token of the tokenizer, tokenizer_config.json and
//           special_tokens_map.json, and the end of a turn of the chat template
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"
#include "runtime/data/special_token_files.h"
#include "runtime/tokenizer/tokenizer.h"

namespace pesc {

struct SpecialTokens {
  int32_t begin = -1;
  int32_t end = -1;
  int32_t end_of_turn = -1;    // what a chat template puts behind an answer; -1: `end`
  std::vector<int64_t> stops;  // ascending, each once
  // Whole sentences. Of files that contradict each other about one token there is one, with all of them and
  // their values.
  std::vector<std::string> warnings;
  std::vector<std::string> notes;  // what is done in another way than a file says, as the recipe does it
};

// `end_of_turn`: the token that a chat template puts behind an answer; -1: `end` is. DataError, with file and
// value, where begin differs from config.json's, or where config.json and
// generation_config.json name ends and none of them is the one that is learned: nothing would end an answer.
[[nodiscard]] SpecialTokens agree_on_special_tokens(const SpecialTokenFiles& files,
                                                    const Tokenizer& tokenizer, const ModelConfig& model,
                                                    int32_t end_of_turn = -1);

}  // namespace pesc
