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

struct EncodedStart {
  std::vector<int32_t> ids;
  size_t bytes = 0;  // of the text, which have been looked at; all of it: `ids` are encode(text)
};

// Immutable; usable from several threads.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // No begin- or end-of-text token is ever added, and no special one comes from the text: "<s>" in it is
  // three characters.
  [[nodiscard]] virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  // Of a long text only the start, in time and memory of the tokens that are wanted: all of encode(text)
  // where that has at most `limit` ids, else its first ids, more than `limit` of them.
  [[nodiscard]] virtual EncodedStart encode_start(std::string_view text, int64_t limit) const {
    (void)limit;
    return {encode(text), text.size()};
  }
  // Control tokens (begin, end, padding) give no text. An id that no piece has, as a padded vocabulary may
  // yield, gives what the unknown piece gives. Bytes that form no UTF-8 become U+FFFD.
  [[nodiscard]] virtual std::string decode(std::span<const int32_t> ids) const = 0;
  [[nodiscard]] virtual int32_t vocab_size() const = 0;
  [[nodiscard]] virtual int32_t bos_id() const = 0;  // -1: there is none
  [[nodiscard]] virtual int32_t eos_id() const = 0;  // -1: there is none
  // Whether the id stands for text that no piece has.
  [[nodiscard]] virtual bool is_unknown(int32_t /*id*/) const { return false; }
  // Whether no text gives the id, and it gives none.
  [[nodiscard]] virtual bool is_control(int32_t id) const { return id == bos_id() || id == eos_id(); }
  // The id of exactly that piece; -1: there is none.
  [[nodiscard]] virtual int32_t piece_id(std::string_view /*piece*/) const { return -1; }
};

// What other files of the model name special (runtime/data/special_tokens.h). Where the tokenizer has such a
// piece as a "user-defined" one, which the library would find in any text, no text gives it here.
struct SpecialPieces {
  std::vector<int64_t> ids;
  std::vector<std::string> texts;
};

// The text of an answer as the tokenizer gives it back: what a model that says it exactly says. A text with
// characters that no piece has comes back as it is, for no model can say it.
// A text of more than `most_tokens` tokens, which nobody compares with, is returned as it is.
[[nodiscard]] std::string canonical_text(const Tokenizer& tokenizer, const std::string& text,
                                         int64_t most_tokens = int64_t{1} << 20);

// The tokenizer of a Hugging Face folder: its sentencepiece `tokenizer.model`. Throws DataError, naming the
// file, when there is none, it is no regular file, a link leads out of the folder, or it is damaged; IoError
// when it cannot be read. (`add_bos_token` and the like in tokenizer_config.json change nothing: the template
// places those tokens. Where they say otherwise, agree_on_special_tokens tells.)
[[nodiscard]] std::unique_ptr<Tokenizer> open_tokenizer(const std::string& folder,
                                                        const SpecialPieces& special = {},
                                                        Links links = Links::kInside);

// Identifies the tokenizer: XXH3-128 of its file in hexadecimal.
[[nodiscard]] std::string tokenizer_digest(const std::string& folder, Links links = Links::kInside);

// Throws DataError, naming both sides' figures, unless the tokenizer is one for this model: no more pieces
// than the model has rows, and no more than a padded vocabulary's share of rows too many (at most 256, or a
// tenth).
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
