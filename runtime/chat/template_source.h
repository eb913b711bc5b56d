// Where a chat template comes from: the model's folder, a built-in one, or a file.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/hf/mapped_file.h"

namespace pesc {

// The tokens of a tokenizer that a template may need.
struct TemplateTokens {
  // Handed to the template by name: bos_token, eos_token, unk_token, sep_token, pad_token, cls_token,
  // mask_token.
  std::vector<std::pair<std::string, std::string>> named;
  // The texts of all control tokens: added tokens with special: true. A turn ends with one of these.
  std::vector<std::string> control;
  int mistral_version = 0;  // Tokenizer::mistral_version()
};

struct TemplateSource {
  std::string name;  // for messages: a path, or "chatml (built in)"
  std::string text;
  TemplateTokens tokens;
  bool published = false;  // the prompt of the published PESC models
  bool in_folder = false;  // it is the folder's own
};

// Whether rows with tools need a template of their own: some folders have one named "tool_use".
enum class ForTools { kNo, kYes };

// `setting` is data.chat_template: "auto", "published", "chatml", "llama3", "mistral", or a path (with a
// slash or ending in .jinja).
//   auto   the folder's own template where it has one: chat_template.jinja, else that of
//          chat_template.json, else that of tokenizer_config.json (a text, or a list of named ones, of which
//          "default" is taken, or for tools "tool_use"). Else the published
//          prompt, or "mistral" where the folder has a tekken.json and no tokenizer.json.
// `folder` is the tokenizer's and may be empty: "auto" is then the published prompt. `known` are the tokens
// of the opened tokenizer; tokenizer_config.json and special_tokens_map.json of the folder are read on top of
// them (what those name goes first). Throws DataError with the file for one that is malformed, UsageError for
// an unknown name.
[[nodiscard]] TemplateSource find_template(const std::string& setting, const std::string& folder,
                                           const TemplateTokens& known, ForTools for_tools = ForTools::kNo,
                                           Links links = Links::kInside);

// Whether a setting is one of these, and whether it is a path.
[[nodiscard]] bool is_template_setting(std::string_view setting);
[[nodiscard]] bool is_template_file(std::string_view setting);

// The text of a built-in template; empty when there is none of that name.
[[nodiscard]] std::string_view builtin_template(std::string_view name);

}  // namespace pesc
