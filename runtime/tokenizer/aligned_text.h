// Pieces of a text on their way to the model, each byte with the bytes of the source text that it stands for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/tokenizer.h"
#include "runtime/tokenizer/unicode.h"

namespace pesc {

struct ByteOrigin {
  uint32_t begin = 0;
  uint32_t end = 0;
};

// Part of a text. `origins` has one entry a byte; null: the piece stands in the source text as it is, at
// `begin`. What it views belongs to whoever made it.
struct Piece {
  std::string_view text;
  const ByteOrigin* origins = nullptr;
  uint32_t begin = 0;
  uint32_t origin = 0;  // where the piece began in the source when it was last cut out of another

  [[nodiscard]] Piece cut(size_t from, size_t to) const;
  // What bytes [from, to) stand for, from < to; of an empty piece, from and to being 0, its place.
  [[nodiscard]] TextRange source_range(size_t from, size_t to) const;
};

// The bytes that a text of `source` bytes may grow to. Real tokenizers at most triple a text; a file that repeats
// its replacements would fill any memory.
[[nodiscard]] constexpr size_t most_bytes(size_t source) {
  return (size_t{1} << 20) + 16 * source;
}
// Throws DataError where `bytes` is above most_bytes(source). `maker` names a part of the tokenizer's file.
void check_growth(size_t bytes, size_t source, const char* maker);

// A piece that was changed. `maker` is the part of the tokenizer's file that changes it; it is named in the DataError
// that is thrown where the piece grows above most_bytes() of what it stands for.
class AlignedText {
 public:
  AlignedText() = default;
  explicit AlignedText(const Piece& piece);
  [[nodiscard]] const std::string& text() const { return text_; }
  // With the source position that the piece which it was made of had.
  [[nodiscard]] Piece piece(uint32_t origin) const { return {text_, origins_.data(), 0, origin}; }

  // The text becomes `changed`; `skipped` characters at its start are gone.
  void transform(std::span<const unicode::Changed> changed, size_t skipped = 0);
  void prepend(std::string_view text, const char* maker);
  // Ranges of the text, ascending, become `content` each.
  void replace(std::span<const TextRange> ranges, std::string_view content, const char* maker);
  // Each byte becomes its character of the byte-level alphabet.
  void to_byte_level();

 private:
  void check_size(size_t bytes, const char* maker) const;
  std::string text_;
  std::vector<ByteOrigin> origins_;
};

// The character of the byte-level alphabet that stands for a byte, and back: -1 where the character is none.
[[nodiscard]] char32_t byte_level_char(unsigned char byte);
[[nodiscard]] int byte_level_byte(char32_t c);
// The bytes that a name of that alphabet stands for; false where a character of it is another.
[[nodiscard]] bool from_byte_level(std::string_view name, std::string& bytes);

}  // namespace pesc
