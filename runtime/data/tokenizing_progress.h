// How far the rows of a file are tokenised.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

namespace pesc {

struct TokenizingProgress {
  std::string path;
  uint64_t bytes = 0;       // of the file, compressed as it is, whose rows are done
  uint64_t file_bytes = 0;  // all of it
  int64_t rows = 0;
  bool ended = false;
  // Of the bytes.
  [[nodiscard]] int percent() const {
    if (file_bytes == 0) return 100;
    return static_cast<int>(100 *
                            std::min(1.0, static_cast<double>(bytes) / static_cast<double>(file_bytes)));
  }
};

}  // namespace pesc
