#include "runtime/data/row_encoder.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <span>
#include <utility>

#include "ops/core/check.h"
#include "runtime/chat/conversation_values.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

std::string hexadecimal(uint64_t digest) {
  char text[20];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(digest));
  return text;
}

Conversation conversation_of_row(const Row& row) {
  return row.chat ? *row.chat : conversation_of_turns(row);
}

// Without the answer that is to be given.
Conversation question_of(const Row& row) {
  Conversation asked = conversation_of_row(row);
  if (asked.messages.back().at("role") == "assistant") {
    asked.messages.erase(asked.messages.size() - 1);
    asked.learned.pop_back();
  }
  return asked;
}

// Transformers writes such a text too; but nobody wants a model to learn it.
void refuse_printed_parts(const Conversation& conversation, const std::string& text) {
  const int64_t message = message_with_printed_parts(conversation.messages, text);
  if (message < 0) return;
  throw DataError(str_cat("message ", message,
                          ": its content is a list of parts, which this chat template writes as a list, with "
                          "brackets and quotes; write the text of the parts as one string"));
}

// Refuses a conversation of which the template leaves out a question: its answer would be learned, or given, without it. Of a system
// text that is left out tokenize_file.cc warns.
void refuse_unshown_question(const Conversation& conversation, const ShownFields& shown) {
  if (shown.unshown_question < 0) return;
  const auto& message = conversation.messages[static_cast<size_t>(shown.unshown_question)];
  throw DataError(
      str_cat("message ", shown.unshown_question, ": its role is ", in_quotes(message.value("role", "")),
              ", and nothing of it is in what the chat template writes; most templates know the roles "
              "system, user, assistant and tool"));
}

Sample sample_of(ChatTokens tokens, int64_t max_seq_length) {
  Sample sample;
  sample.tokens = std::move(tokens.ids);
  sample.truncated = std::ssize(sample.tokens) > max_seq_length;
  if (sample.truncated) sample.tokens.resize(static_cast<size_t>(max_seq_length));
  sample.labels.assign(sample.tokens.size(), kUnsupervised);
  for (const TokenRange& range : tokens.learned) {
    // Nothing predicts the first token of a text.
    for (size_t t = std::max<size_t>(range.begin, 1); t < std::min(range.end, sample.tokens.size()); ++t) {
      sample.labels[t - 1] = sample.tokens[t];
      ++sample.supervised;
    }
  }
  return sample;
}

}  // namespace

std::string RowEncoder::name() const {
  return templates_ ? "the chat template " + templates_->usual.name()
                    : std::string("the published prompt (### Human, ### Assistant)");
}

std::string RowEncoder::why_no_date() const {
  if (templates_ && templates_->ask_for_date()) return "";
  return str_cat(name(), " does not ask for the date (strftime_now)");
}

ChatTokens RowEncoder::chat_tokens(const Conversation& conversation, TrainOn train_on, std::string* text,
                                   ShownFields* shown) const {
  RenderedChat chat = templates_->of(conversation).render(conversation, train_on);
  refuse_printed_parts(conversation, chat.text);
  refuse_unshown_question(conversation, chat.shown);
  ChatTokens tokens = tokens_of(tokenizer_, chat);
  if (text != nullptr) *text = std::move(chat.text);
  if (shown != nullptr) *shown = chat.shown;
  return tokens;
}

// Of the published prompt: a row whose last answer alone is learned.
Row RowEncoder::with_last_alone(const Row& row) const {
  Row out = row;
  for (size_t i = 0; i + 1 < out.turns.size(); ++i) out.turns[i].learned = false;
  return out;
}

Sample RowEncoder::encode(const Row& row, int64_t max_seq_length, RowLosses* losses) const {
  if (!by_template(row)) {
    const bool last = train_on_ == TrainOn::kLast && row.turns.size() > 1;
    return encode_row(tokenizer_, last ? with_last_alone(row) : row, max_seq_length, losses);
  }
  PESC_CHECK(max_seq_length > 0);
  std::string text;
  ChatTokens tokens =
      chat_tokens(conversation_of_row(row), train_on_, &text, losses != nullptr ? &losses->shown : nullptr);
  if (losses != nullptr) {
    losses->unknown =
        std::ranges::count_if(tokens.ids, [&](int32_t id) { return tokenizer_.is_unknown(id); });
    const std::string back = tokenizer_.decode_all(tokens.ids);
    losses->changed = back != text;
    if (losses->changed) losses->example = difference(text, back);
  }
  return sample_of(std::move(tokens), max_seq_length);
}

std::vector<int32_t> RowEncoder::encode_prompt(const Row& row, int64_t limit) const {
  if (!by_template(row)) return pesc::encode_prompt(tokenizer_, row, limit);
  const Conversation asked = question_of(row);
  if (asked.messages.empty()) throw DataError("the row has no message before the answer that is to be given");
  const RenderedChat chat = templates_->of(asked).render_prompt(asked);
  refuse_printed_parts(asked, chat.text);
  refuse_unshown_question(asked, chat.shown);
  return tokens_of(tokenizer_, chat).ids;
}

RowText RowEncoder::text_of(const Row& row) const {
  RowText out;
  if (by_template(row)) {
    ChatTokens tokens = chat_tokens(conversation_of_row(row), train_on_, &out.text);
    out.ids = std::move(tokens.ids);
    out.learned = std::move(tokens.learned);
    return out;
  }
  const Sample sample = encode(row, INT32_MAX);
  out.text = published_text(tokenizer_, row);
  out.ids = sample.tokens;
  for (size_t t = 0; t + 1 < sample.labels.size(); ++t) {
    if (sample.labels[t] == kUnsupervised) continue;
    if (!out.learned.empty() && out.learned.back().end == t + 1) {
      ++out.learned.back().end;
    } else {
      out.learned.push_back({t + 1, t + 2});
    }
  }
  return out;
}

std::string RowEncoder::canonical_answer(const Row& row, int64_t most_tokens) const {
  const std::string& answer = row.turns.back().answer;
  if (!by_template(row)) return canonical_text(tokenizer_, answer, most_tokens);
  Conversation conversation = conversation_of_row(row);
  // The last message, whether it is learned or not.
  for (size_t i = 0; i < conversation.learned.size(); ++i)
    conversation.learned[i] = i + 1 == conversation.learned.size();
  const ChatTokens tokens = chat_tokens(conversation, TrainOn::kLast, nullptr);
  if (tokens.learned.empty()) return answer;
  const TokenRange said{tokens.learned.front().begin, tokens.learned.back().end};
  if (std::ssize(tokens.ids) > most_tokens) return answer;
  return tokenizer_.decode(std::span(tokens.ids).subspan(said.begin, said.end - said.begin));
}

std::string RowEncoder::digest() const {
  std::vector<int32_t> all;
  const auto add = [&all](const Sample& sample) {
    all.insert(all.end(), sample.tokens.begin(), sample.tokens.end());
    all.insert(all.end(), sample.labels.begin(), sample.labels.end());
  };
  if (!templates_) {
    const std::array<Row, 2> rows{Row{"", "s", {{"a", "b"}, {"c", "d"}}, ""}, Row{"", "", {}, "text"}};
    for (const Row& row : rows) add(encode_row(tokenizer_, row, INT32_MAX));
    return hexadecimal(XXH3_64bits(all.data(), all.size() * sizeof(int32_t)));
  }
  // What a template makes of a row follows from its text and the tokenizer, which has a digest of its own.
  std::string text = templates_->usual.undated_identity();
  if (templates_->with_tools) text += templates_->with_tools->undated_identity();
  return hexadecimal(XXH3_64bits(text.data(), text.size()));
}

std::string RowEncoder::identity() const {
  std::string text = digest() + (train_on_ == TrainOn::kLast ? " last " : " all ");
  if (templates_) {
    text += templates_->usual.identity();
    if (templates_->with_tools) text += templates_->with_tools->identity();
  }
  // Another version of the program may make others of them.
  const std::array<Row, 3> rows{
      Row{"",
          "Be brief.",
          {{"What is 12 + 30?", " 42\n\n"}, {"na\u00efve \u65e5\u672c", "it's <s> 3.14"}},
          ""},
      Row{"", "", {{"q", "a"}}, ""}, Row{"", "", {}, "Plain text,\tof  two words."}};
  for (const Row& row : rows) {
    try {
      const Sample sample = encode(row, INT32_MAX);
      for (const int32_t token : sample.tokens) text += str_cat(' ', token);
      for (const int32_t label : sample.labels) text += label == kUnsupervised ? '-' : '+';
    } catch (const DataError& error) {  // a template may have no place for a system text
      text += error.what();
    }
  }
  const XXH128_hash_t hash = XXH3_128bits(text.data(), text.size());
  return hexadecimal(hash.high64) + hexadecimal(hash.low64);
}

}  // namespace pesc
