// The tokenizer of a sentencepiece model file, read by the sentencepiece library.
#pragma once

#include <memory>
#include <string>

#include "runtime/tokenizer/tokenizer.h"

namespace pesc {

// Throws DataError, naming the file, where it is damaged or of another kind; IoError when it cannot be read.
[[nodiscard]] std::unique_ptr<Tokenizer> open_sentencepiece_tokenizer(const std::string& path,
                                                                      const SpecialPieces& special);

}  // namespace pesc
