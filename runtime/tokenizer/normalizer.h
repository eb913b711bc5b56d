// The normalizers of a tokenizer.json: NFC, NFD, Replace, Prepend, Strip, Lowercase and sequences of them.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "runtime/tokenizer/aligned_text.h"
#include "runtime/tokenizer/pattern.h"

namespace pesc {

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  // The normalised piece: `piece` itself where nothing changes, else a view of `storage`.
  [[nodiscard]] virtual Piece normalize(const Piece& piece, AlignedText& storage) const = 0;
};

// In order. `json` is the file's "normalizer"; null gives none. Throws DataError for what is not supported.
[[nodiscard]] std::vector<std::unique_ptr<Normalizer>> read_normalizers(const nlohmann::json& json);

// Ranges of all matches.
[[nodiscard]] std::vector<TextRange> all_matches(const Pattern& pattern, std::string_view text);
// {"String": ...} or {"Regex": ...}.
[[nodiscard]] Pattern read_pattern(const nlohmann::json& json, const char* of);

}  // namespace pesc
