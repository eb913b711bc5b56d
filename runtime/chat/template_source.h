// Where a chat template comes from: the model's folder, a built-in one, or a file.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace pesc {

// The tokens of a tokenizer that a template may need.
struct TemplateTokens {
  // Handed to the template by name: bos_token, eos_token, unk_token, pad_token, and whatever else
  // special_tokens_map has.
  std::vector<std::pair<std::string, std::string>> named;
  // The texts of all control tokens: added tokens with special: true. A turn ends with one of these.
  std::vector<std::string> control;
};

struct TemplateSource {
  std::string name;  // for messages: a path, or "chatml (built in)"
  std::string text;
  TemplateTokens tokens;
};

// `setting` is data.chat_template: "auto", "published", "chatml", "llama3", "mistral", or a path.
//   auto   the folder's own template where it has one, else the published prompt ("mistral" where the folder
//   has a
//          tekken.json and no tokenizer.json). With tools, a folder's template named "tool_use" where there
//          is one.
// `folder` may be empty: then "auto" is the published prompt. The tokens are read from tokenizer_config.json,
// special_tokens_map.json and the added tokens of tokenizer.json; `base_tokens` (of a sentencepiece model)
// fill what is missing. Throws DataError with file and what for files that are malformed, UsageError for an
// unknown name.
[[nodiscard]] TemplateSource find_template(const std::string& setting, const std::string& folder,
                                           const TemplateTokens& base_tokens, bool with_tools = false);

// Reads the tokens alone.
[[nodiscard]] TemplateTokens read_template_tokens(const std::string& folder,
                                                  const TemplateTokens& base_tokens);

// Text of a built-in template; empty when there is none of that name.
[[nodiscard]] std::string_view builtin_template(std::string_view name);

}  // namespace pesc
