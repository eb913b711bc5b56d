// Text to token ids and back.
//
// A text is tokenised in pieces, each on its own: the prompt up to "### Assistant:\n", then the answer. A
// sentencepiece model with a dummy prefix (Llama's has one) puts its space mark before the first word of
// *each* piece, so the answer begins with a space mark that is not in the text. That is harmless because it
// is the same in training and in generation, where the prompt is given and the model writes the answer from
// that same boundary; and it is what makes it the same, since no merge can reach across. Decoding an answer's
// tokens by themselves drops the mark again.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "runtime/hf/mapped_file.h"

namespace pesc {

// Immutable; usable from several threads.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // No begin- or end-of-text token is ever added, and none comes from the text: "<s>" in it is three
  // characters.
  [[nodiscard]] virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  // Control tokens (begin, end, padding) give no text. An id that no piece has, as a padded vocabulary may
  // yield, gives what the unknown piece gives. Bytes that form no UTF-8 become U+FFFD.
  [[nodiscard]] virtual std::string decode(std::span<const int32_t> ids) const = 0;
  [[nodiscard]] virtual int32_t vocab_size() const = 0;
  [[nodiscard]] virtual int32_t bos_id() const = 0;  // -1: there is none
  [[nodiscard]] virtual int32_t eos_id() const = 0;  // -1: there is none
};

// The tokenizer of a Hugging Face folder: its sentencepiece `tokenizer.model`. Throws DataError, naming the
// file, when there is none, it is no regular file, a link leads out of the folder, or it is damaged; IoError
// when it cannot be read. (`add_bos_token` and the like in tokenizer_config.json do not matter: the template
// places those tokens.)
[[nodiscard]] std::unique_ptr<Tokenizer> open_tokenizer(const std::string& folder,
                                                        Links links = Links::kInside);

// Identifies the tokenizer: XXH3-128 of its file in hexadecimal.
[[nodiscard]] std::string tokenizer_digest(const std::string& folder, Links links = Links::kInside);

// Throws DataError, naming both sides' figures, unless the tokenizer is one for this model: no more pieces
// than the model has rows; no more than a padded vocabulary's share of rows too many (at most 256, or a
// tenth); and the same begin- and end-of-text ids where both name them.
void check_vocabulary(const Tokenizer& tokenizer, const ModelConfig& model);

// Prints tokens as they come. What is printed is the decoding of all tokens pushed so far, less a character
// at its end that still lacks bytes. Works on a window of the last tokens: constant time per token.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  // What can be printed now that could not before; may be empty.
  [[nodiscard]] std::string push(int32_t id);
  // What was held back. The decoder is then as new.
  [[nodiscard]] std::string finish();

 private:
  void shorten_window(size_t held);
  const Tokenizer& tokenizer_;
  std::vector<int32_t> window_;
  size_t printed_ = 0;  // bytes of decode(window_) that are out
};

}  // namespace pesc
