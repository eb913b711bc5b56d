#include "runtime/chat/model_templates.h"

#include <utility>
#include <vector>

#include "ops/core/check.h"
#include "runtime/chat/template_source.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

ChatTemplate compiled(TemplateSource source, const std::string& date) {
  TemplateOptions options;
  options.date = date;
  ChatTemplate made(std::move(source), std::move(options));
  made.require_spans();
  return made;
}

// tokenizer_config.json may name a token that the tokenizer's own file does not have.
int32_t token_of(const ChatTemplate& made, const Tokenizer& tokenizer) {
  EncodeOptions options;
  options.added_tokens = AddedTokens::kAll;
  const std::string& end = made.end_of_turn();
  const std::vector<int32_t> ids = tokenizer.encode_with_ranges(end, options).ids;
  if (!end.empty() && ids.size() == 1 && tokenizer.is_control(ids[0])) return ids[0];
  throw DataError(str_cat(made.name(), ": ends a turn with ", in_quotes(end),
                          ", which is no special token of this tokenizer, so the model would never learn to "
                          "stop; use the tokenizer that belongs to the template, or data.chat_template: "
                          "\"published\""));
}

// A name such as bos_token that stands for a piece of the vocabulary and for no added token: transformers adds it.
void check_named_tokens(const TemplateSource& source, const Tokenizer& tokenizer) {
  EncodeOptions options;
  options.added_tokens = AddedTokens::kAll;
  const auto mentions = [&](const std::string& what) { return source.text.find(what) != std::string::npos; };
  for (const auto& [key, text] : source.tokens.named) {
    if (text.empty() || (!mentions(key) && !mentions(text))) continue;
    const size_t pieces = tokenizer.encode_with_ranges(text, options).ids.size();
    if (pieces == 1) continue;
    throw DataError(str_cat(
        source.name, ": writes ", in_quotes(text), ", the ", key, ", of which this tokenizer makes ", pieces,
        " tokens and transformers one; add it to added_tokens of tokenizer.json with its id"));
  }
}

}  // namespace

TemplateTokens template_tokens(const Tokenizer& tokenizer) {
  TemplateTokens out;
  out.mistral_version = tokenizer.mistral_version();
  const auto name = [&](const char* key, int32_t id) {
    if (id >= 0) out.named.emplace_back(key, tokenizer.piece(id));
  };
  name("bos_token", tokenizer.bos_id());
  name("eos_token", tokenizer.eos_id());
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (!tokenizer.is_control(id)) continue;
    if (std::string piece = tokenizer.piece(id); !piece.empty()) out.control.push_back(std::move(piece));
  }
  return out;
}

std::optional<ModelTemplates> open_templates(const TemplateSetting& setting, const std::string& folder,
                                             const Tokenizer& tokenizer, Links links) {
  const TemplateTokens known = template_tokens(tokenizer);
  TemplateSource source = find_template(setting.name, folder, known, ForTools::kNo, links);
  if (source.published) return std::nullopt;
  check_named_tokens(source, tokenizer);
  TemplateSource for_tools = find_template(setting.name, folder, known, ForTools::kYes, links);
  const bool other = for_tools.text != source.text;
  if (other) check_named_tokens(for_tools, tokenizer);
  ModelTemplates out{compiled(std::move(source), setting.date), std::nullopt};
  out.end_of_turn = token_of(out.usual, tokenizer);
  if (other) {
    out.with_tools = compiled(std::move(for_tools), setting.date);
    if (token_of(*out.with_tools, tokenizer) != out.end_of_turn)
      throw DataError(str_cat(out.with_tools->name(), ": ends a turn with another token than ",
                              out.usual.name(), "; give one file as data.chat_template"));
  }
  return out;
}

}  // namespace pesc
