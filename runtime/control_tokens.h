// Whether a base model was ever trained on the control tokens of a chat template. Bases carry rows of the
// embedding and the head for tokens such as <|eot_id|> that no text of theirs had. Both matrices are frozen
// when adapters are tuned, so such a model would hardly ever stop.
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
  int32_t end_of_turn = -1;
};

// Compares the tokens' rows of the embedding, and the end of turn's row of an untied head, with ordinary ones.
// Throws DataError for rows that are near zero beside these, or equal to each other, with the way out.
void check_control_tokens(WeightSource& base, const ModelConfig& model, const ControlTokens& control);

}  // namespace pesc
