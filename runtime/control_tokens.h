// Whether a base model was ever trained on the control tokens of a chat template. Bases carry rows of the
// embedding and the head for tokens such as <|eot_id|> that no text of theirs had. Both matrices are frozen
// when adapters are tuned, so such a model would hardly ever stop.
//
// What training leaves undone shows in two ways, each measured in the usual norm of a row (the median):
//
//   near zero     Rows of Llama 3's base: weight decay, or a start at zero, and no gradient.
//   not apart     Rows of tokens that no text has get the same gradient from the softmax, or were made as one
//                 mean of all rows with hardly any noise (transformers' resize_token_embeddings). They stay
//                 beside each other, whatever their norm is. So a token of the template is compared with the
//                 template's other tokens, and with the control tokens that the tokenizer only reserves.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/weight_source.h"

namespace pesc {

struct ControlTokens {
  struct Token {
    std::string text;
    int32_t id = -1;
  };
  std::string template_name;  // for the message
  std::vector<Token> tokens;  // all that the template writes
  std::vector<Token> others;  // further control tokens of the tokenizer
  int32_t end_of_turn = -1;
};

// Looks at the tokens' rows of the embedding, and at the end of turn's row of an untied head. Throws DataError,
// with the way out, for a row that is near zero or not apart from that of another control token.
void check_control_tokens(WeightSource& base, const ModelConfig& model, const ControlTokens& control);

}  // namespace pesc
