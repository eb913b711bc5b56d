#include "runtime/data/special_tokens.h"

#include <algorithm>
#include <set>
#include <string_view>

#include "ops/core/check.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

using Source = SpecialToken::Source;

// The id of a statement; -1 where neither a file nor the tokenizer gives the text one.
int64_t id_of(const SpecialToken& token, const Tokenizer& tokenizer) {
  return token.id >= 0 ? token.id : tokenizer.piece_id(token.text);
}

std::string said_by(const SpecialToken& token) {
  return str_cat(token.key, " of ", token.file);
}

std::string text_in_quotes(const SpecialToken& token) {
  return in_quotes(token.text);
}

// "eos_token of FILE is token 7 ('<|end|>')"
std::string statement(const SpecialToken& token, int64_t id) {
  if (id < 0)
    return str_cat(said_by(token), " is ", text_in_quotes(token), ", which the tokenizer has no piece for");
  return str_cat(said_by(token), " is token ", id,
                 token.text.empty() ? "" : str_cat(" (", text_in_quotes(token), ")"));
}

// What the files say that is not what the tokenizer has.
class Contradiction {
 public:
  // `own`: that of the tokenizer's file; -1: it has none, and is not one of those that are compared.
  Contradiction(std::string about, const SpecialTokenFiles& files, int64_t own) : about_(std::move(about)) {
    if (own >= 0) said_.push_back(str_cat(files.tokenizer, " has token ", own));
  }
  void add(std::string what) {
    ++others_;
    constexpr size_t kMost = 8;
    if (said_.size() < kMost) said_.push_back(std::move(what));
  }
  void tell(const std::string& done, std::vector<std::string>& warnings) const {
    if (others_ == 0) return;
    std::string text = str_cat("the files do not agree on ", about_, ": ");
    for (size_t i = 0; i < said_.size(); ++i) text += (i == 0 ? "" : "; ") + said_[i];
    warnings.push_back(str_cat(text, ". ", done));
  }

 private:
  std::string about_;
  std::vector<std::string> said_;
  int others_ = 0;
};

void agree_on_begin(const SpecialTokenFiles& files, const Tokenizer& tokenizer, SpecialTokens& out) {
  if (out.begin < 0) return;
  Contradiction others("the token that begins a text", files, out.begin);
  for (const SpecialToken& token : files.begins) {
    const int64_t id = id_of(token, tokenizer);
    if (id == out.begin) continue;
    if (token.source == Source::kModel) {
      throw DataError(str_cat("the tokenizer begins a text with token ", out.begin, ", the model with ", id,
                              " (", said_by(token), "); use the tokenizer that belongs to the model"));
    }
    others.add(statement(token, id));
  }
  others.tell(str_cat("Texts begin with token ", out.begin), out.warnings);
}

// config.json and generation_config.json may list several, of which the learned one is one.
void agree_on_end(const SpecialTokenFiles& files, const Tokenizer& tokenizer, const ModelConfig& model,
                  SpecialTokens& out) {
  bool learned = false;
  std::set<std::string_view> with_learned;  // files
  std::string named;                        // by those files that say where generation stops
  for (const SpecialToken& token : files.ends) {
    const int64_t id = id_of(token, tokenizer);
    if (id < 0) continue;
    PESC_CHECK(id < model.vocab_size, "token ", id, " of ", model.vocab_size);
    out.stops.push_back(id);
    if (id == out.end) with_learned.insert(token.file);
    if (token.source == Source::kTokenizer) continue;
    learned |= id == out.end;
    constexpr size_t kMost = 200;
    if (named.size() < kMost) named += str_cat(named.empty() ? "" : ", ", id, " (", said_by(token), ")");
  }
  // A chat template has an end of its own, at which generation stops whatever the files say.
  const bool by_template = out.end_of_turn >= 0;
  if (!by_template && out.end >= 0 && !named.empty() && !learned) {
    throw DataError(
        str_cat("answers are learned with token ", out.end, " at their end (that of ", files.tokenizer,
                "), but the model ends a text with token ", named,
                ": nothing would stop behind an answer; use the tokenizer that belongs to the model, or add ",
                out.end, " to eos_token_id of its config.json"));
  }
  if (out.end >= 0) out.stops.push_back(out.end);
  if (by_template) out.stops.push_back(out.end_of_turn);
  std::ranges::sort(out.stops);
  out.stops.erase(std::ranges::unique(out.stops).begin(), out.stops.end());
  if (by_template) return;

  Contradiction others("the token that ends an answer", files, out.end);
  for (const SpecialToken& token : files.ends) {
    const int64_t id = id_of(token, tokenizer);
    if (id < 0 || (out.end >= 0 && !with_learned.contains(token.file))) others.add(statement(token, id));
  }
  std::string stops;
  for (const int64_t id : out.stops) stops += str_cat(stops.empty() ? "" : ", ", id);
  others.tell(str_cat(out.end < 0 ? std::string("No answer is learned with an end")
                                  : str_cat("Answers are learned with token ", out.end, " at their end"),
                      stops.empty() ? std::string() : str_cat(", and generation stops at token ", stops)),
              out.warnings);
}

// Nothing here pads with a token: rows of a micro-batch lie end to end.
void agree_on_padding(const SpecialTokenFiles& files, const Tokenizer& tokenizer, SpecialTokens& out) {
  std::set<int64_t> ids;
  for (const SpecialToken& token : files.pads) ids.insert(id_of(token, tokenizer));
  if (ids.size() < 2) return;
  Contradiction all("the token that pads", files, -1);
  for (const SpecialToken& token : files.pads) all.add(statement(token, id_of(token, tokenizer)));
  all.tell("None of them counts: no row is padded with a token here", out.warnings);
}

// Of a text that begins or ends: the first id counts, and the tokenizer's own piece only where no file gives
// one.
void agree_on_ids(const SpecialTokenFiles& files, const Tokenizer& tokenizer, SpecialTokens& out) {
  std::set<std::string_view> done;
  for (const auto* role : {&files.begins, &files.ends, &files.pads}) {
    for (const SpecialToken& token : *role) {
      if (token.text.empty() || token.id < 0 || !done.insert(token.text).second) continue;
      const int64_t piece = tokenizer.piece_id(token.text);
      Contradiction ids(str_cat("the id of ", text_in_quotes(token)), files, piece);
      bool differ = piece >= 0 && piece != token.id;
      for (const AddedTokenId& a : files.added) differ |= a.text == token.text && a.id != token.id;
      if (!differ) continue;
      for (const AddedTokenId& a : files.added) {
        if (a.text == token.text) ids.add(str_cat(a.file, " has token ", a.id));
      }
      ids.tell(str_cat("Token ", token.id, " is taken"), out.warnings);
    }
  }
}

// The published prompt has both, whatever the file says of texts that are encoded by themselves; a chat
// template says itself what it puts.
void tell_of_added_ends(const SpecialTokenFiles& files, SpecialTokens& out) {
  if (out.end_of_turn >= 0) return;
  const std::string always = "as the published recipe does";
  if (const auto& adds = files.adds_begin; adds && adds->adds != (out.begin >= 0)) {
    out.warnings.push_back(str_cat(
        adds->file, ": add_bos_token is ", adds->adds ? "true" : "false", "; ",
        adds->adds ? str_cat("no token is put in front of a text, for ", files.tokenizer,
                             " has none that begins one")
                   : str_cat("token ", out.begin, " is put in front of every text nevertheless, ", always)));
  }
  if (const auto& adds = files.adds_end; adds && out.end >= 0) {
    const std::string text = str_cat(adds->file, ": add_eos_token is ", adds->adds ? "true" : "false",
                                     "; token ", out.end, " is put behind every answer",
                                     adds->adds ? ", and behind no question, " : " nevertheless, ", always);
    (adds->adds ? out.warnings : out.notes).push_back(text);
  }
}

void tell_of_ordinary_stops(const Tokenizer& tokenizer, SpecialTokens& out) {
  const auto ordinary = [&](int64_t id) {
    return id != out.end && id != out.end_of_turn && id < tokenizer.vocab_size() &&
           !tokenizer.is_control(static_cast<int32_t>(id));
  };
  const auto first = std::ranges::find_if(out.stops, ordinary);
  if (first == out.stops.end()) return;
  const std::string text = tokenizer.decode(std::vector<int32_t>{static_cast<int32_t>(*first)});
  out.warnings.push_back(str_cat(std::ranges::count_if(out.stops, ordinary),
                                 " of the tokens that end an answer are ordinary pieces of text, token ",
                                 *first, " ('", printable(text),
                                 "') first: an answer ends where such text stands in it (eos_token_id)"));
}

}  // namespace

SpecialTokens agree_on_special_tokens(const SpecialTokenFiles& files, const Tokenizer& tokenizer,
                                      const ModelConfig& model, int32_t end_of_turn) {
  SpecialTokens out{tokenizer.bos_id(), tokenizer.eos_id(), end_of_turn, {}, {}, {}};
  agree_on_ids(files, tokenizer, out);
  agree_on_begin(files, tokenizer, out);
  agree_on_end(files, tokenizer, model, out);
  agree_on_padding(files, tokenizer, out);
  tell_of_added_ends(files, out);
  tell_of_ordinary_stops(tokenizer, out);
  return out;
}

}  // namespace pesc
