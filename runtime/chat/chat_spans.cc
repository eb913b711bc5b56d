#include "runtime/chat/chat_spans.h"

#include <algorithm>

namespace pesc {
namespace {

using jinja::Span;
using jinja::Stretch;

bool is_space(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

bool from_assistant(const Span& span) {
  return (span.origin & jinja::kFromAssistant) != 0;
}
bool from_data(const Span& span) {
  return (span.origin & jinja::kFromData) != 0;
}

class Finder {
 public:
  Finder(const jinja::Text& text, const std::vector<Stretch>& stretches, const std::vector<bool>& learned,
         const SpanRules& rules)
      : text_(text), bytes_(text.bytes), stretches_(stretches), learned_(learned), rules_(rules) {}

  LearnedSpans find() {
    if (rules_.marked) {
      marked();
    } else {
      // A message that has text in its own stretches is learned there and nowhere else: what a tool's message
      // repeats of the call is not the model's.
      std::vector<bool> own(learned_.size());
      for (const Stretch& stretch : stretches_) in_stretch(stretch, own);
      outside_of_stretches(own);
    }
    std::ranges::sort(found_.ranges, {}, &TextRange::begin);
    return std::move(found_);
  }

 private:
  [[nodiscard]] bool to_learn(int64_t message) const {
    return message >= 0 && message < std::ssize(learned_) && learned_[static_cast<size_t>(message)];
  }
  [[nodiscard]] static int64_t message_of(const Span& span) {
    return static_cast<int64_t>(jinja::message_of(span.origin));
  }

  // The first and the last end of a control token of the template's own text in [begin, end); npos when there
  // is none.
  struct Ends {
    size_t first = std::string::npos;
    size_t last = std::string::npos;
  };
  [[nodiscard]] Ends control_ends(size_t begin, size_t end) const {
    Ends ends;
    for (size_t at = begin; at < end;) {
      const size_t size = control_at(bytes_, at, rules_.control).size();
      if (size == 0) {
        ++at;
        continue;
      }
      at += size;
      if (ends.first == std::string::npos) ends.first = at;
      ends.last = at;
    }
    return ends;
  }

  // A control token behind `at`, with nothing or white space of the template's own between.
  [[nodiscard]] size_t end_right_behind(size_t at) const {
    const size_t from = at;
    while (at < bytes_.size() && is_space(bytes_[at]) && text_.origin_at(at) == jinja::kOwnText) ++at;
    if (at >= bytes_.size() || (text_.origin_at(at) & jinja::kFromData) != 0) return std::string::npos;
    const size_t size = control_at(bytes_, at, rules_.control).size();
    return size == 0 || (at == from && at == 0) ? std::string::npos : at + size;
  }

  void add(size_t begin, size_t end) {
    if (begin < end) found_.ranges.push_back({begin, end});
  }
  void missing_end(int64_t message) {
    if (found_.without_end < 0) found_.without_end = std::max<int64_t>(message, 0);
  }

  // Behind the prompt of the answer whose text is [begin, first): all of the prompt, which may begin before
  // the stretch, or as much of it as is there.
  [[nodiscard]] size_t behind_prompt(size_t begin, size_t first) const {
    const std::string_view prompt = rules_.prompt;
    if (prompt.empty()) return begin;
    const std::string_view text = bytes_;
    for (size_t before = 0; before <= std::min(begin, prompt.size()); ++before) {
      const size_t end = begin - before + prompt.size();
      if (end >= begin && end <= first && text.substr(begin - before, prompt.size()) == prompt) return end;
    }
    const std::string_view here = text.substr(begin, first - begin);
    size_t same = static_cast<size_t>(std::ranges::mismatch(here, prompt).in1 - here.begin());
    same = std::min(before_cut_token(here, same), before_cut_token(prompt, same));
    return same == 0 ? first : begin + same;
  }

  // `size`, or less where a token would be cut there: a control token, or another "<...>" or "[...]".
  [[nodiscard]] size_t before_cut_token(std::string_view text, size_t size) const {
    for (size_t at = 0; at < size;) {
      const size_t token = control_at(text, at, rules_.control).size();
      if (token > 0 && at + token > size) return at;
      at += std::max<size_t>(token, 1);
    }
    for (const std::string_view brackets : {"<>", "[]"}) {
      const size_t open = text.substr(0, size).rfind(brackets[0]);
      if (open != std::string_view::npos &&
          text.substr(open, size - open).find(brackets[1]) == std::string_view::npos)
        size = open;
    }
    return size;
  }

  [[nodiscard]] auto spans_from(size_t begin) const {
    return std::ranges::partition_point(text_.spans, [&](const Span& s) { return s.end <= begin; });
  }

  // Text of others cuts a stretch into segments; those with text of the message itself are learned.
  void in_stretch(const Stretch& stretch, std::vector<bool>& own) {
    if (!to_learn(stretch.message)) return;
    const auto in_segment = [&](size_t begin, size_t end) {
      size_t first = std::string::npos;
      size_t last = 0;
      for (auto span = spans_from(begin); span != text_.spans.end() && span->begin < end; ++span) {
        if (!from_assistant(*span) || message_of(*span) != stretch.message) continue;
        if (first == std::string::npos) first = std::max(span->begin, begin);
        last = std::min(span->end, end);
      }
      if (first == std::string::npos) return;
      own[static_cast<size_t>(stretch.message)] = true;
      if (begin == stretch.begin) first = behind_prompt(begin, first);
      const bool at_end = end == stretch.end;
      const Ends ends = control_ends(last, end);
      size_t over = at_end ? ends.last : ends.first;
      if (over == std::string::npos && at_end) over = end_right_behind(last_of_own(last, end));
      if (over == std::string::npos) {
        missing_end(stretch.message);
        over = last;
      }
      add(first, over);
    };
    size_t begin = stretch.begin;
    for (auto span = spans_from(begin); span != text_.spans.end() && span->begin < stretch.end; ++span) {
      if (!from_data(*span)) continue;
      if (span->begin > begin) in_segment(begin, span->begin);
      begin = std::min(span->end, stretch.end);
    }
    if (begin < stretch.end) in_segment(begin, stretch.end);
  }

  // Where the template's last own text of a stretch ends, white space at its end aside.
  [[nodiscard]] size_t last_of_own(size_t last, size_t end) const {
    while (end > last && is_space(bytes_[end - 1])) --end;
    return end;
  }

  // Templates that write while they go over something else than messages: neighbouring spans of one message.
  void outside_of_stretches(const std::vector<bool>& own) {
    const auto& spans = text_.spans;
    size_t around = 0;
    for (size_t i = 0; i < spans.size();) {
      const int64_t message = message_of(spans[i]);
      if (!from_assistant(spans[i]) || !to_learn(message) || own[static_cast<size_t>(message)] ||
          !outside(spans[i].begin)) {
        around = spans[i++].end;
        continue;
      }
      const size_t first = spans[i].begin;
      while (i + 1 < spans.size() && from_assistant(spans[i + 1]) && message_of(spans[i + 1]) == message) ++i;
      const size_t last = spans[i++].end;
      const size_t until = i < spans.size() ? spans[i].begin : bytes_.size();
      size_t begin = first;
      const size_t prompt = rules_.prompt.empty()
                                ? std::string::npos
                                : std::string_view(bytes_).substr(0, first).rfind(rules_.prompt);
      if (prompt != std::string::npos && prompt >= around) begin = prompt + rules_.prompt.size();
      const size_t end = control_ends(last, until).first;
      if (end == std::string::npos) missing_end(message);
      add(begin, end == std::string::npos ? last : end);
      around = last;
    }
  }
  [[nodiscard]] bool outside(size_t at) const {
    const int64_t message = stretch_message(at);
    return message < 0;
  }
  [[nodiscard]] int64_t stretch_message(size_t at) const {
    const auto stretch =
        std::ranges::partition_point(stretches_, [&](const Stretch& s) { return s.end <= at; });
    return stretch == stretches_.end() || stretch->begin > at ? -1 : stretch->message;
  }

  void marked() {
    const auto& spans = text_.spans;
    for (size_t i = 0; i < spans.size(); ++i) {
      if ((spans[i].origin & jinja::kMarked) == 0) continue;
      const size_t begin = spans[i].begin;
      int64_t message = stretch_message(begin);
      const auto take = [&](const Span& span) {
        if (message < 0 && from_assistant(span)) message = message_of(span);
      };
      take(spans[i]);
      while (i + 1 < spans.size() && (spans[i + 1].origin & jinja::kMarked) != 0 &&
             spans[i + 1].begin == spans[i].end)
        take(spans[++i]);
      if (message >= 0 && !to_learn(message)) continue;
      size_t end = spans[i].end;
      if (control_before(std::string_view(bytes_).substr(begin, end - begin), end - begin, rules_.control)
              .empty()) {
        const size_t over = end_right_behind(end);
        if (over == std::string::npos) missing_end(message);
        if (over != std::string::npos) end = over;
      }
      add(begin, end);
    }
  }

  const jinja::Text& text_;
  const std::string& bytes_;
  const std::vector<Stretch>& stretches_;
  const std::vector<bool>& learned_;
  const SpanRules& rules_;
  LearnedSpans found_;
};

}  // namespace

LearnedSpans learned_spans(const jinja::Text& text, const std::vector<Stretch>& stretches,
                           const std::vector<bool>& learned, const SpanRules& rules) {
  return Finder(text, stretches, learned, rules).find();
}

std::vector<TextRange> data_ranges(const jinja::Text& text) {
  std::vector<TextRange> out;
  for (const Span& span : text.spans) {
    if (!from_data(span)) continue;
    if (!out.empty() && out.back().end == span.begin) {
      out.back().end = span.end;
    } else {
      out.push_back({span.begin, span.end});
    }
  }
  return out;
}

std::string_view control_at(std::string_view text, size_t at, const std::vector<std::string>& control) {
  std::string_view longest;
  for (const std::string& token : control) {
    if (token.size() > longest.size() && text.substr(at).starts_with(token)) longest = token;
  }
  return longest;
}

std::string_view control_before(std::string_view text, size_t end, const std::vector<std::string>& control) {
  while (end > 0 && is_space(text[end - 1])) --end;
  std::string_view longest;
  for (const std::string& token : control) {
    if (token.size() > longest.size() && text.substr(0, end).ends_with(token)) longest = token;
  }
  return longest;
}

}  // namespace pesc
