// The pre-tokenizers of a tokenizer.json, which cut a text into the pieces that the model sees: Split,
// ByteLevel, Digits, Metaspace, Punctuation and sequences of them.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "runtime/tokenizer/aligned_text.h"

namespace pesc {

class PieceSink {
 public:
  virtual ~PieceSink() = default;
  // False: no more pieces are wanted. The piece is valid during the call.
  virtual bool take(const Piece& piece) = 0;
};

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  // Gives the parts of the piece to `sink`, in order, none of them empty. False when `sink` wants no more.
  virtual bool cut(const Piece& piece, PieceSink& sink) const = 0;
  // Whether it cuts at all.
  [[nodiscard]] virtual bool cuts() const { return true; }
  [[nodiscard]] virtual bool is_byte_level() const { return false; }
  // Of a byte-level one: the pieces keep their bytes, for a model that takes these.
  virtual void keep_bytes() {}
};

// In order. `json` is the file's "pre_tokenizer"; null gives none. Throws DataError for what is not
// supported.
[[nodiscard]] std::vector<std::unique_ptr<PreTokenizer>> read_pre_tokenizers(const nlohmann::json& json);

}  // namespace pesc
