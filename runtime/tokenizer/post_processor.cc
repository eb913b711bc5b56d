#include "runtime/tokenizer/post_processor.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "runtime/text/printable.h"
#include "runtime/tokenizer/component_json.h"
#include "runtime/tokenizer/unicode.h"

namespace pesc {
namespace {

using nlohmann::json;

constexpr char32_t kByteLevelSpace = 0x120;

size_t forward(std::string_view text, size_t at, size_t characters, size_t end) {
  for (; characters > 0 && at < end; --characters) (void)unicode::next_char(text, at);
  return std::min(at, end);
}

// `at` itself where fewer characters stand before it.
size_t back(std::string_view text, size_t at, size_t characters) {
  size_t to = at;
  for (; characters > 0; --characters) {
    if (to == 0) return at;
    do --to;
    while (to > 0 && unicode::continues(text[to]));
  }
  return to;
}

void trim(std::string_view text, bool first, bool prefix_space, const TokenSpaces& spaces, TextRange& range) {
  if (spaces.leading > 0) {
    // One space before the first token was put there and is none of the text.
    const bool added = (first || range.begin == 0) && prefix_space && spaces.leading == 1;
    if (!added) range.begin = forward(text, range.begin, spaces.leading, range.end);
  }
  if (spaces.trailing > 0) range.end = std::max(back(text, range.end, spaces.trailing), range.begin);
}

// "$A", {"Sequence": {"id": "A"}} and {"SpecialToken": {"id": "<s>"}} of a template.
void append_part(const Component& part, const json& item, std::vector<int32_t>& parts, int32_t text) {
  constexpr size_t kMost = 10'000;
  if (!item.is_object() || item.size() != 1 || !item.begin()->is_object() || !item.begin()->contains("id") ||
      !(*item.begin())["id"].is_string())
    part.refuse("\"single\" has an item that is neither a Sequence nor a SpecialToken");
  const std::string id = (*item.begin())["id"].get<std::string>();
  if (item.begin().key() == "Sequence") {
    if (id != "A") part.refuse(str_cat("\"single\" has the sequence ", printable(id), "; there is A alone"));
    parts.push_back(text);
    return;
  }
  if (item.begin().key() != "SpecialToken")
    part.refuse("\"single\" has an item that is neither a Sequence nor a SpecialToken");
  const json& tokens = part.at("special_tokens");
  if (!tokens.is_object() || !tokens.contains(id) || !tokens[id].is_object() || !tokens[id].contains("ids") ||
      !tokens[id]["ids"].is_array())
    part.refuse(str_cat("\"special_tokens\" says no ids of ", printable(id)));
  for (const json& number : tokens[id]["ids"]) {
    if (!number.is_number_unsigned() || number.get<uint64_t>() >= uint64_t{1} << 24 || parts.size() >= kMost)
      part.refuse(str_cat("the ids of ", printable(id), " are no token ids"));
    parts.push_back(number.get<int32_t>());
  }
}

}  // namespace

void PostProcessor::read(const json& j) {
  if (!j.is_null()) append(j, 0);
}

void PostProcessor::append(const json& j, int depth) {
  const std::string type = component_type(j, "post_processor");
  const Component part{j, "post_processor", type};
  part.check_count(steps_.size());
  if (type == "Sequence") {
    part.check_depth(depth);
    for (const json& inner : part.array("processors")) append(inner, depth + 1);
  } else if (type == "ByteLevel") {
    if (part.boolean("trim_offsets")) steps_.push_back({true, part.boolean("add_prefix_space"), {}});
  } else if (type == "TemplateProcessing") {
    Step step;
    for (const json& item : part.array("single")) append_part(part, item, step.parts, kText);
    if (std::ranges::count(step.parts, kText) != 1) part.refuse("\"single\" does not have the text once");
    steps_.push_back(std::move(step));
  } else {
    part.refuse_type("TemplateProcessing, ByteLevel and Sequence");
  }
}

int32_t PostProcessor::highest_id() const {
  int32_t highest = -1;
  for (const Step& step : steps_) {
    for (const int32_t id : step.parts) highest = std::max(highest, id);
  }
  return highest;
}

int32_t PostProcessor::first_id() const {
  int32_t first = -1;
  for (const Step& step : steps_) {
    if (!step.parts.empty() && step.parts.front() != kText) first = step.parts.front();
  }
  return first;
}

bool PostProcessor::trims() const {
  return std::ranges::any_of(steps_, [](const Step& step) { return step.trims; });
}

void PostProcessor::apply(std::string_view text, const EncodeOptions& options,
                          std::vector<TokenSpaces> spaces, Encoding& encoding) const {
  for (const Step& step : steps_) {
    if (step.trims && options.trim_offsets) {
      for (size_t i = 0; i < encoding.ids.size(); ++i)
        trim(text, i == 0, step.prefix_space, spaces[i], encoding.ranges[i]);
    }
    if (step.parts.empty() || !options.post_processor) continue;
    const auto middle = std::ranges::find(step.parts, kText);
    const auto before = middle - step.parts.begin();
    encoding.ids.insert(encoding.ids.begin(), step.parts.begin(), middle);
    encoding.ids.insert(encoding.ids.end(), middle + 1, step.parts.end());
    encoding.ranges.insert(encoding.ranges.begin(), static_cast<size_t>(before), {});
    encoding.ranges.resize(encoding.ids.size());
    if (options.trim_offsets && trims()) {
      spaces.insert(spaces.begin(), static_cast<size_t>(before), {});
      spaces.resize(encoding.ids.size());
    }
  }
}

TokenSpaces spaces_of(std::string_view name) {
  const auto is_space = [](char32_t c) { return c == kByteLevelSpace || unicode::space().contains(c); };
  TokenSpaces out;
  uint32_t run = 0;
  bool all = true;
  for (size_t at = 0; at < name.size();) {
    run = is_space(unicode::next_char(name, at)) ? run + 1 : 0;
    all &= run > 0;
    if (all) out.leading = run;
  }
  out.trailing = run;
  return out;
}

}  // namespace pesc
