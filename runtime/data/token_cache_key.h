// What tokenised rows depend on: the key of the file that holds them.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/data/dataset_options.h"
#include "runtime/data/row_encoder.h"
#include "runtime/tokenizer/tokenizer.h"

namespace pesc {

// To be raised whenever rows are read, split, fitted or tokenised otherwise than before in a way that no other
// part of the key shows.
inline constexpr int kTokenizingVersion = 3;

struct TokenCacheKey {
  std::string text;  // a line a part; printable
  std::string name;  // of the file: "rows-" and 32 hexadecimal digits of the text's digest, and ".tokens"
};

// What a source file is, so that a change while it is read is seen.
struct SourceStamp {
  uint64_t device = 0, inode = 0, bytes = 0;
  int64_t seconds = 0, nanoseconds = 0;  // of its last change
  friend bool operator==(const SourceStamp&, const SourceStamp&) = default;
};
// Throws IoError.
[[nodiscard]] SourceStamp stamp_of(const std::string& path);

// Reads all of the file. Throws as open_row_bytes() does.
[[nodiscard]] TokenCacheKey token_cache_key(const DatasetFile& file, const DatasetOptions& options);

// TokenCacheOptions::encoding. `tokenizer_digest`: that of its file.
[[nodiscard]] std::string encoding_identity(const RowEncoder& encoder, const Tokenizer& tokenizer,
                                            const std::string& tokenizer_digest);

}  // namespace pesc
