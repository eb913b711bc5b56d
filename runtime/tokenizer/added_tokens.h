// The tokens of a tokenizer.json that are cut out of a text before the model sees it: <|im_start|>, <think>.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/tokenizer/aligned_text.h"
#include "runtime/tokenizer/tokenizer.h"

namespace pesc {

struct AddedToken {
  int32_t id = -1;
  std::string content;
  std::string matched;  // what is looked for: with `normalized` the content as the normalizer leaves it
  bool single_word = false;
  bool lstrip = false;
  bool rstrip = false;
  bool normalized = false;
  bool special = false;
};

// Those that decide where a text has the token.
[[nodiscard]] inline std::array<bool, 4> matching_flags(const AddedToken& token) {
  return {token.single_word, token.lstrip, token.rstrip, token.normalized};
}

// A token that a file beside tokenizer.json names, so that transformers (seen in 5.24.0 and 4.57.6) adds it.
struct NamedToken {
  std::string content;
  std::string place;      // file and key, for messages
  bool has_role = false;  // it begins or ends a text, pads it, or stands for what is unknown
};

// What the files beside tokenizer.json say of added tokens.
struct ConfiguredTokens {
  // By content: the entries of tokenizer_config.json's added_tokens_decoder. Where texts have a token is decided
  // by their flags and not by those of tokenizer.json, as in transformers (seen in 5.24.0), which adds each entry
  // that differs once more. A token is special where either file says so.
  std::unordered_map<std::string, AddedToken> flags;
  // tokenizer.json must have them.
  std::vector<NamedToken> named;
};

// Finds tokens in a text: the leftmost, and of those that begin there the longest.
class AddedTokenFinder {
 public:
  // Keeps no reference to `tokens`.
  void build(const std::vector<AddedToken>& tokens, bool normalized);
  [[nodiscard]] bool empty() const { return tokens_.empty(); }
  // Cuts the piece: part(piece, token) for each part in order; the token is -1 for text between.
  void cut(const Piece& piece, const EncodeOptions& options,
           const std::function<void(const Piece&, int32_t)>& part) const;

 private:
  struct Node {
    std::vector<std::pair<unsigned char, uint32_t>> next;  // ascending
    int32_t token = -1;                                    // index of the token that ends here
  };
  [[nodiscard]] bool allowed(const AddedToken& token, const Piece& piece, size_t begin, size_t end,
                             const EncodeOptions& options) const;
  // Index of the longest allowed token at `begin`, with its end; -1.
  [[nodiscard]] int32_t longest(const Piece& piece, size_t begin, const EncodeOptions& options,
                                size_t& end) const;
  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  bool begins_[256] = {};
};

}  // namespace pesc
