// The post-processors of a tokenizer.json: what is put around a text's tokens, and which white space their
// ranges leave out. TemplateProcessing, ByteLevel and sequences of them.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/tokenizer.h"

namespace pesc {

// White-space characters at the ends of a token's name.
struct TokenSpaces {
  uint32_t leading = 0;
  uint32_t trailing = 0;
};

class PostProcessor {
 public:
  // `json` is the file's "post_processor"; null adds and trims nothing. Throws DataError for what is not
  // supported.
  void read(const nlohmann::json& json);
  // The highest id that is added; -1.
  [[nodiscard]] int32_t highest_id() const;
  // The id that a text begins with; -1.
  [[nodiscard]] int32_t first_id() const;
  // Whether apply() looks at `spaces`.
  [[nodiscard]] bool trims() const;
  // `spaces` has an entry for each token where trims() and options.trim_offsets.
  void apply(std::string_view text, const EncodeOptions& options, std::vector<TokenSpaces> spaces,
             Encoding& encoding) const;

 private:
  struct Step {
    bool trims = false;
    bool prefix_space = false;
    // Of a template: ids to add, or kText for the text's tokens.
    std::vector<int32_t> parts;
  };
  static constexpr int32_t kText = -1;
  void append(const nlohmann::json& json, int depth);
  std::vector<Step> steps_;
};

[[nodiscard]] TokenSpaces spaces_of(std::string_view name);

}  // namespace pesc
