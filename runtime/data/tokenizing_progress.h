// How far the rows of a file are tokenised.
#pragma once

#include <cstdint>
#include <string>

namespace pesc {

struct TokenizingProgress {
  std::string path;
  uint64_t bytes = 0;       // of the file, compressed as it is, whose rows are done
  uint64_t file_bytes = 0;  // all of it
  int64_t rows = 0;
  bool ended = false;
};

}  // namespace pesc
