// The decoders of a tokenizer.json, which make text of the names of tokens: Replace, ByteFallback, Fuse,
// Strip, ByteLevel, Metaspace and sequences of them.
#pragma once

#include <cstddef>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace pesc {

class TokenDecoder {
 public:
  virtual ~TokenDecoder() = default;
  // `source`: bytes of the tokens' own names, before any decoder. Throws DataError where the names grow above
  // most_bytes(source).
  virtual void decode(std::vector<std::string>& names, size_t source) const = 0;
  [[nodiscard]] virtual bool is_byte_level() const { return false; }
};

// In order. `json` is the file's "decoder"; null gives none: the names are put together with spaces between.
// Throws DataError for what is not supported.
[[nodiscard]] std::vector<std::unique_ptr<TokenDecoder>> read_decoders(const nlohmann::json& json);

// The bytes of a name of the byte-level alphabet; its own where it is of another.
void append_byte_level(const std::string& name, std::string& bytes);
// `bytes` with U+FFFD for each part that is no UTF-8: the longest start of a character, or one byte.
[[nodiscard]] std::string with_replacements(std::string bytes);

}  // namespace pesc
