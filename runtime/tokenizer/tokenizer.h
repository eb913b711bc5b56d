// Text to token ids and back: one interface, two implementations.
//
//   sentencepiece_tokenizer.cc   a folder's tokenizer.model, read by the sentencepiece library
//   json_tokenizer.cc            a folder's tokenizer.json, read by our own code, which gives the ids,
//                                offsets and texts of the original library (PyPI's tokenizers 0.23.3)
//
// open_tokenizer() chooses. A text is UTF-8; offsets are bytes of it. An implementation is immutable and may
// be used from several threads at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "runtime/hf/mapped_file.h"

namespace pesc {

// Bytes [begin, end) of a text.
struct TextRange {
  size_t begin = 0;
  size_t end = 0;
  friend bool operator==(const TextRange&, const TextRange&) = default;
};

// The added tokens of a tokenizer.json that a text is searched for, before anything else is done with it.
enum class AddedTokens {
  kNone,      // none: "<think>" is seven characters
  kOrdinary,  // those with "special": false. For what a user wrote: no text of his becomes a control token
  kAll,       // special ones too. For rendered templates, and what the original library's encode() does
};

struct EncodeOptions {
  AddedTokens added_tokens = AddedTokens::kOrdinary;
  // With kAll: ranges of the text, ascending and disjoint, that no special token may touch (the text of user
  // and tool messages inside a rendered template). Ordinary added tokens are found there.
  std::span<const TextRange> plain = {};
  // Adds what the post-processor adds: begin-of-text and the like. Their ranges are empty, at 0.
  bool post_processor = false;
  // Ranges leave out white space at a token's ends where the post-processor says so ("trim_offsets"), as the
  // original library's do. Otherwise a range is all that the token stands for.
  bool trim_offsets = false;
};

// `ranges[i]` is what of the text token i stands for, in whole characters: of a character that is cut into
// several tokens each has all of it. A range is empty where the token stands for nothing in the text.
struct Encoding {
  std::vector<int32_t> ids;
  std::vector<TextRange> ranges;
};

struct EncodedStart {
  std::vector<int32_t> ids;
  size_t bytes = 0;  // of the text, which have been looked at; all of it: `ids` are encode(text)
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Ids alone, with the default options: no special token is added, and none comes from the text. Throws
  // DataError, with the byte, for a text that is no UTF-8.
  [[nodiscard]] virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  [[nodiscard]] virtual Encoding encode_with_ranges(std::string_view text,
                                                    const EncodeOptions& options) const = 0;
  // Of a long text only the start, in time and memory of the tokens that are wanted: all of encode(text)
  // where that has at most `limit` ids, else its first ids, more than `limit` of them.
  [[nodiscard]] virtual EncodedStart encode_start(std::string_view text, int64_t /*limit*/) const {
    return {encode(text), text.size()};
  }

  // Control tokens (begin, end, padding; special added tokens) give no text. An id that no piece has, as a
  // padded vocabulary may yield, gives what the unknown piece gives, or nothing. Bytes that form no UTF-8
  // become U+FFFD.
  [[nodiscard]] virtual std::string decode(std::span<const int32_t> ids) const = 0;
  // Control tokens give their own text ("<|im_end|>").
  [[nodiscard]] virtual std::string decode_all(std::span<const int32_t> ids) const = 0;

  [[nodiscard]] virtual int32_t vocab_size() const = 0;  // the highest id, plus 1
  [[nodiscard]] virtual int32_t bos_id() const = 0;      // -1: there is none
  [[nodiscard]] virtual int32_t eos_id() const = 0;      // -1: there is none
  // Whether the id stands for text that no piece has.
  [[nodiscard]] virtual bool is_unknown(int32_t /*id*/) const { return false; }
  // Whether no user's text gives the id, and it gives none.
  [[nodiscard]] virtual bool is_control(int32_t id) const { return id == bos_id() || id == eos_id(); }
  // The id of exactly that piece; -1: there is none. Names are as the file spells them: "Ġhello", "▁hello",
  // "<0x0A>", "<|im_end|>".
  [[nodiscard]] virtual int32_t piece_id(std::string_view /*piece*/) const { return -1; }
  // The name of the id; empty for an id that no piece has.
  [[nodiscard]] virtual std::string piece(int32_t /*id*/) const { return {}; }
  // The version of Mistral's format of conversations that a tekken.json names: 3 for "v3". 0: another file, or it names none.
  [[nodiscard]] virtual int mistral_version() const { return 0; }
};

// What other files of the model name special (runtime/data/special_tokens.h). No user's text gives these.
struct SpecialPieces {
  std::vector<int64_t> ids;
  std::vector<std::string> texts;
};

// The text of an answer as the tokenizer gives it back: what a model that says it exactly says. A text with
// characters that no piece has comes back as it is, for no model can say it.
// A text of more than `most_tokens` tokens, which nobody compares with, is returned as it is.
[[nodiscard]] std::string canonical_text(const Tokenizer& tokenizer, const std::string& text,
                                         int64_t most_tokens = int64_t{1} << 20);

// The name of the file that open_tokenizer() reads: `tokenizer.json` where the folder has one, as transformers
// loads it, else sentencepiece's `tokenizer.model`, else Mistral's `tekken.json`. Throws DataError when there is
// none.
[[nodiscard]] std::string tokenizer_file(const std::string& folder);

// The tokenizer of a Hugging Face folder. Throws DataError, naming the file, when there is none, it is no
// regular file, a link leads out of the folder, it is damaged, or (by name) it needs what is not supported;
// IoError when it cannot be read. (`add_bos_token` and the like in tokenizer_config.json change nothing: the
// template places those tokens. Where they say otherwise, agree_on_special_tokens tells.)
[[nodiscard]] std::unique_ptr<Tokenizer> open_tokenizer(const std::string& folder,
                                                        const SpecialPieces& special = {},
                                                        Links links = Links::kInside);

// Identifies the tokenizer: XXH3-128, in hexadecimal, of its file and of what tokenizer_config.json changes
// about it.
[[nodiscard]] std::string tokenizer_digest(const std::string& folder, Links links = Links::kInside);

// Throws DataError, naming both sides' figures, unless the tokenizer is one for this model: no more pieces
// than the model has rows, and no more than a padded vocabulary's share of rows too many (at most 256, or a
// tenth).
void check_vocabulary(const Tokenizer& tokenizer, const ModelConfig& model);

}  // namespace pesc
