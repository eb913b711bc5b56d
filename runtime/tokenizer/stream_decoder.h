// Text of tokens as they come.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/tokenizer/tokenizer.h"

namespace pesc {

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
  static constexpr size_t kLongestWindow = 256;
  void shorten_window(const std::string& text);
  const Tokenizer& tokenizer_;
  std::vector<int32_t> window_;
  std::string printed_;  // what of decode(window_) is out
};

}  // namespace pesc
