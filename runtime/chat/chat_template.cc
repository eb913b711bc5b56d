#include "runtime/chat/chat_template.h"

#include <algorithm>
#include <map>
#include <utility>

#include "runtime/chat/chat_spans.h"
#include "runtime/chat/conversation_values.h"
#include "runtime/chat/jinja/ast.h"
#include "runtime/chat/jinja/interpreter.h"
#include "runtime/chat/template_date.h"
#include "runtime/text/utf8.h"

namespace pesc {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kQuestion = "Which way?";
constexpr const char* kAnswer = "This way.";

// Questions and answers by turns, as many messages as asked for; with a tool's description for templates that
// cannot do without.
Conversation probe(size_t messages, bool with_tool) {
  Conversation made;
  made.messages = Json::array();
  for (size_t i = 0; i < messages; ++i) {
    const bool answer = i % 2 == 1;
    made.messages.push_back(
        {{"role", answer ? "assistant" : "user"}, {"content", answer ? kAnswer : kQuestion}});
    made.learned.push_back(answer);
  }
  if (with_tool) {
    made.tools = Json::parse(
        R"([{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters":
        {"type": "object", "properties": {"what": {"type": "string", "description": "What."}}, "required": ["what"],
         "additionalProperties": false}}}])");
  }
  return made;
}

}  // namespace

struct ChatTemplate::Impl {
  TemplateSource source;
  TemplateOptions options;
  std::unique_ptr<jinja::Program> program;
  std::string prompt;         // what the template writes with add_generation_prompt
  std::string answer_prefix;  // what stands before an answer; the prompt where there is one
  std::string end_of_turn;
  std::vector<std::string> control_tokens;  // that the template writes
  bool probe_has_tool = false;              // the template takes no conversation without tools

  struct Rendering {
    jinja::Text text;
    std::vector<jinja::Stretch> stretches;
    std::map<std::string, ShownFields::Count> read;
  };

  [[noreturn]] void rethrow(const jinja::Failure& failure, bool of_row) const {
    throw TemplateError(failure.line > 0 ? str_cat(source.name, ":", failure.line, ": ", failure.what())
                                         : str_cat(source.name, ": ", failure.what()),
                        of_row);
  }

  [[nodiscard]] Rendering run(const Conversation& conversation, bool add_generation_prompt) const {
    const TemplateLimits& limits = options.limits;
    try {
      jinja::Heap heap(limits.memory_bytes, limits.steps);
      jinja::Interpreter in(*program, heap, {limits.depth, limits.output_bytes}, options.date);
      in.set("documents", jinja::Value::none());
      // The tools get the number behind the last message, so that no message is taken for shown because of them.
      in.set("tools", value_of(heap, conversation.tools,
                               jinja::origin_of(jinja::kFromData, conversation.messages.size())));
      const jinja::Value messages = messages_value(heap, conversation.messages);
      in.set("messages", messages);
      in.set("add_generation_prompt", jinja::Value(add_generation_prompt));
      for (const auto& [name, text] : source.tokens.named) in.set(name, heap.string(text));
      for (const auto& [name, value] : options.extra.items())
        in.set(name, value_of(heap, value, jinja::kOwnText));
      in.run();
      return {std::move(in.text()), in.stretches(), read_fields(in, messages, conversation)};
    } catch (const jinja::Failure& failure) {
      rethrow(failure, true);
    }
  }

  [[nodiscard]] SpanRules rules() const {
    return {source.tokens.control, answer_prefix, program->has_generation};
  }

  [[noreturn]] void no_end(std::string_view what, bool of_row) const {
    throw TemplateError(
        str_cat(
            source.name, ": ", what,
            " ends without a special token of this tokenizer, so the model would never learn to stop; use a "
            "template of the tokenizer's own, or data.chat_template: \"published\""),
        of_row);
  }

  // What the template writes before an answer, and what ends one, found out with conversations that have just
  // that. A template that takes none of them says so in require_spans().
  void find_ends() {
    for (const bool with_tool : {false, true}) {
      try {
        find_prompt(with_tool);
        probe_has_tool = with_tool;
        return;
      } catch (const TemplateError&) {
        continue;
      }
    }
  }

  void find_prompt(bool with_tool) {
    const std::string without = run(probe(1, with_tool), false).text.bytes;
    const std::string with = run(probe(1, with_tool), true).text.bytes;
    const Rendering answered = run(probe(2, with_tool), false);
    const std::string& text = answered.text.bytes;
    prompt = with.starts_with(without) ? with.substr(without.size()) : "";
    answer_prefix = prompt;
    for (const jinja::Stretch& stretch : answered.stretches) {
      if (stretch.message != 1 || !prompt.empty()) continue;
      const size_t answer = text.find(kAnswer, stretch.begin);
      if (answer < stretch.end) answer_prefix = text.substr(stretch.begin, answer - stretch.begin);
    }
    const LearnedSpans spans = learned_spans(answered.text, answered.stretches, {false, true}, rules());
    if (!spans.ranges.empty() && spans.without_end < 0)
      end_of_turn = control_before(text, spans.ranges.back().end, source.tokens.control);
    find_control_tokens(text + prompt);
  }

  void find_control_tokens(std::string_view text) {
    for (size_t at = 0; at < text.size();) {
      const std::string token(control_at(text, at, source.tokens.control));
      if (!token.empty() && std::ranges::find(control_tokens, token) == control_tokens.end())
        control_tokens.push_back(token);
      at += std::max<size_t>(token.size(), 1);
    }
  }
};

ChatTemplate::ChatTemplate(TemplateSource source, TemplateOptions options) : impl_(std::make_unique<Impl>()) {
  impl_->source = std::move(source);
  impl_->options = std::move(options);
  const std::string& name = impl_->source.name;
  const std::string& date = impl_->options.date;
  if (!date.empty() && !is_date(date))
    throw UsageError(str_cat("data.template_date is \"", date, "\"; write it as \"2025-01-31\""));
  const size_t valid = valid_utf8_prefix(impl_->source.text);
  if (valid < impl_->source.text.size())
    throw TemplateError(str_cat(name, ": byte ", valid, " is not UTF-8"), false);
  try {
    impl_->program = jinja::parse(impl_->source.text);
  } catch (const jinja::Failure& failure) {
    impl_->rethrow(failure, false);
  }
  impl_->find_ends();
}

ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;

void ChatTemplate::require_spans() const {
  for (const size_t messages : {size_t{2}, size_t{4}}) {
    const Conversation conversation = probe(messages, impl_->probe_has_tool);
    const Impl::Rendering rendered = impl_->run(conversation, false);
    const LearnedSpans spans =
        learned_spans(rendered.text, rendered.stretches, conversation.learned, impl_->rules());
    const bool found = std::ranges::any_of(spans.ranges, [&](const TextRange& range) {
      return rendered.text.bytes.substr(range.begin, range.end - range.begin).find(kAnswer) !=
             std::string::npos;
    });
    if (!found) {
      throw TemplateError(
          str_cat(impl_->source.name,
                  ": the text of the assistant's messages is not found in what the template writes, "
                  "so nothing would be learned; mark it with {% generation %}"),
          false);
    }
    if (spans.without_end >= 0) impl_->no_end("an answer", false);
    if (rendered.text.bytes.find(kQuestion) == std::string::npos) {
      throw TemplateError(str_cat(impl_->source.name,
                                  ": the text of the user's messages is not found in what the template "
                                  "writes, so answers would be learned without their questions"),
                          false);
    }
  }
}

RenderedChat ChatTemplate::render(const Conversation& conversation, TrainOn train_on) const {
  Impl::Rendering rendered = impl_->run(conversation, false);
  std::vector<bool> learned = conversation.learned;
  if (train_on == TrainOn::kLast) {
    const auto last = std::find(learned.rbegin(), learned.rend(), true);
    std::fill(last == learned.rend() ? last : last + 1, learned.rend(), false);
  }
  const LearnedSpans spans = learned_spans(rendered.text, rendered.stretches, learned, impl_->rules());
  if (spans.without_end >= 0) impl_->no_end(str_cat("message ", spans.without_end), true);
  RenderedChat out;
  out.learned = spans.ranges;
  out.shown = shown_fields(conversation, rendered.text, rendered.stretches);
  out.shown.others = std::move(rendered.read);
  out.data = data_ranges(rendered.text);
  out.text = std::move(rendered.text.bytes);
  return out;
}

RenderedChat ChatTemplate::render_prompt(const Conversation& conversation) const {
  Impl::Rendering rendered = impl_->run(conversation, true);
  RenderedChat out;
  out.shown.unshown_question = shown_fields(conversation, rendered.text, rendered.stretches).unshown_question;
  out.data = data_ranges(rendered.text);
  out.text = std::move(rendered.text.bytes);
  return out;
}

const std::string& ChatTemplate::generation_prompt() const {
  return impl_->prompt;
}

const std::string& ChatTemplate::end_of_turn() const {
  return impl_->end_of_turn;
}

const std::vector<std::string>& ChatTemplate::control_tokens() const {
  return impl_->control_tokens;
}

const std::string& ChatTemplate::name() const {
  return impl_->source.name;
}

bool ChatTemplate::asks_for_date() const {
  return impl_->program->find_slot("strftime_now") >= 0;
}

std::string ChatTemplate::undated_identity() const {
  Json all = {{"template", impl_->source.text},
              {"extra", impl_->options.extra},
              {"control", impl_->source.tokens.control},
              {"named", Json::array()}};
  for (const auto& [name, text] : impl_->source.tokens.named) all["named"].push_back({name, text});
  return all.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string ChatTemplate::identity() const {
  return str_cat(impl_->options.date, " ", undated_identity());
}

}  // namespace pesc
