// The prompt template and what is learned of it:
//
//   {bos}[### System:\n{system}\n]### Human:\n{prompt}\n### Assistant:\n
//   |{answer}{eos}|### Human:\n{prompt}\n### Assistant:\n|{answer}{eos} ...
//
// The system part exists only when the row has one; later turns follow the end-of-text token directly. Each
// piece between bars is tokenised separately (see tokenizer.h), so that generation starts at the same
// boundary as in training. The loss covers the answers and their end-of-text tokens, except in turns that are
// not learned. Plain text (a corpus row) is {bos}{text}{eos} without a template; all of it except the
// begin-of-text token is learned. A text has one begin-of-text token if the tokenizer has one, and "<s>"
// inside a text is three characters.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/chat/shown_fields.h"
#include "runtime/data/rows.h"
#include "runtime/tokenizer/tokenizer.h"

namespace pesc {

inline constexpr int32_t kUnsupervised = -100;

struct Sample {
  std::vector<int32_t> tokens;  // [T]
  std::vector<int32_t> labels;  // [T] labels[t] is what position t has to predict: tokens[t + 1], or
                                // kUnsupervised. The last position predicts nothing.
  int64_t supervised = 0;  // labels that are not kUnsupervised; 0: nothing left to learn, do not train it
  bool truncated = false;  // the row had more than max_seq_length tokens
};

// What the tokenizer cannot say of a row, as far as its texts are in the sample.
struct RowLosses {
  int64_t unknown = 0;     // tokens that stand for characters that no piece has
  bool changed = false;    // some text does not come back from the tokenizer as it went in
  bool unsayable = false;  // some answer has no token at all
  std::string example;     // of the first: "'caf\u00e9' becomes 'caf'", or a place
  ShownFields shown{};     // what of the assistant's messages the chat template shows
};

// The first `max_seq_length` tokens of the row; text far beyond them is not tokenised. Throws DataError when
// the tokenizer has no end-of-text token.
[[nodiscard]] Sample encode_row(const Tokenizer& tokenizer, const Row& row, int64_t max_seq_length,
                                RowLosses* losses = nullptr);

// Where generation starts: the same tokens as in encode_row up to the answer of the last turn (which is not
// read and may be empty). Of plain text: begin-of-text and the text, to be continued. A prompt of more than
// `limit` tokens comes cut, with at least one more than these.
[[nodiscard]] std::vector<int32_t> encode_prompt(const Tokenizer& tokenizer, const Row& row,
                                                 int64_t limit = INT64_MAX);

// All of the row's text with the template around it, begin- and end-of-text by their names. For people.
[[nodiscard]] std::string published_text(const Tokenizer& tokenizer, const Row& row);

// Some characters around the first difference of two texts: "'caf\u00e9' becomes 'caf'".
[[nodiscard]] std::string difference(std::string_view before, std::string_view after);

}  // namespace pesc
