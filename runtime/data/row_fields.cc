#include "runtime/data/row_fields.h"

#include <array>
#include <optional>

#include "ops/core/check.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

struct Refusal {
  std::string_view name;
  std::string_view why;
  std::optional<bool> neutral = false;  // the boolean that changes nothing
  bool mark = false;                    // 0 and 1 mean false and true
};

constexpr std::string_view kShareGpt =
    "is of another form (\"from\" and \"value\"); write {\"messages\": [{\"role\": \"user\", \"content\": "
    "\"..\"}, {\"role\": \"assistant\", \"content\": \"..\"}]}, roles being system, user and assistant";
constexpr std::string_view kTools =
    "is not supported: tools and their calls are not learned; leave such rows out, or write the call into "
    "the text";
constexpr std::string_view kMedia = "is not supported: rows are text";
constexpr std::string_view kPreference =
    "is not supported: preferences are not learned; write the answer to learn as \"output\"";
constexpr std::string_view kThoughts =
    "is not supported: it is text that would neither be seen nor learned; write it into the content, or take "
    "it away";

constexpr std::string_view kOtherMask =
    "is not supported: it says what is learned in other words; write \"train\": false, or \"weight\": 0, at "
    "the message";
constexpr std::string_view kOfKto =
    "is not supported: it says whether the answer is wanted; leave out the rows whose answer is not, and the "
    "field in the others";
constexpr std::string_view kWeightOfRow =
    "is not supported: rows have no weight of their own; leave out the rows that are not to be learned, and "
    "the field in the others; a file may have a weight (data.train.weight)";
constexpr std::string_view kSeen =
    "is not supported: it is text that would neither be seen nor learned; write it into \"input\" or "
    "\"system\"";
constexpr std::string_view kOfTemplate =
    "is not supported: it changes what a chat template writes; take it away, or write what it does into a "
    "file "
    "of your own, data.chat_template";

constexpr std::array kOfRows = std::to_array<Refusal>({
    {"tools", kTools},
    {"functions", kTools},
    {"tool_calls", kTools},
    {"function_call", kTools},
    {"image", kMedia},
    {"images", kMedia},
    {"video", kMedia},
    {"videos", kMedia},
    {"audio", kMedia},
    {"audios", kMedia},
    {"chosen", kPreference},
    {"rejected", kPreference},
    {"kto_tag", kOfKto, true, true},
    {"label", kOfKto, true, true},
    {"loss_weight", kWeightOfRow, true, true},
    {"sample_weight", kWeightOfRow, true, true},
    {"training", kWeightOfRow, true, true},
    {"loss", kWeightOfRow, true, true},
    {"context", kSeen},
    {"system_prompt", kSeen},
    {"suffix", kSeen},
    {"documents", kSeen},
    {"reasoning", kThoughts},
    {"chat_template_kwargs", kOfTemplate},
    {"enable_thinking", kOfTemplate, std::nullopt},
});
constexpr std::array kOfElements = std::to_array<Refusal>({
    {"from", kShareGpt},
    {"value", kShareGpt},
    {"tools", kTools},
    {"functions", kTools},
    {"tool_calls", kTools},
    {"tool_call_id", kTools},
    {"function_call", kTools},
    {"image", kMedia},
    {"images", kMedia},
    {"video", kMedia},
    {"videos", kMedia},
    {"audio", kMedia},
    {"audios", kMedia},
    {"reasoning", kThoughts},
    {"reasoning_content", kThoughts},
    {"thinking", kThoughts},
    {"thoughts", kThoughts},
    {"reasoning_details", kThoughts},
    {"tool_call", kTools},
    {"system", kSeen},
    {"mask", kOtherMask, false, true},
    {"masked", kOtherMask, false, true},
    {"ignore", kOtherMask, false, true},
    {"trainable", kOtherMask, true, true},
    {"loss_weight", kOtherMask, true, true},
    {"loss_scale", kOtherMask, true, true},
    {"train_detail", kOtherMask},
    {"training_detail", kOtherMask},
    {"label", kOfKto, true, true},
});

template <class List>
const Refusal* find(const List& list, std::string_view name) {
  for (const Refusal& r : list) {
    if (r.name == name) return &r;
  }
  return nullptr;
}

// A name that rows and elements have means the same in both.
const Refusal* find_anywhere(std::string_view name) {
  const Refusal* const of_row = find(kOfRows, name);
  return of_row != nullptr ? of_row : find(kOfElements, name);
}

std::string_view why(const Refusal* refusal) {
  return refusal == nullptr ? std::string_view() : refusal->why;
}

}  // namespace

std::string_view refused_row_field(std::string_view name) {
  return why(find(kOfRows, name));
}

std::string_view refused_element_field(std::string_view name) {
  return why(find(kOfElements, name));
}

std::optional<bool> neutral_boolean(std::string_view name) {
  const Refusal* const found = find_anywhere(name);
  return found == nullptr ? false : found->neutral;
}

bool neutral_number(std::string_view name, double value) {
  const Refusal* const found = find_anywhere(name);
  return found != nullptr && found->mark && value == (found->neutral == true ? 1 : 0);
}

void FieldCounts::add(const std::string& name, int64_t rows) {
  constexpr size_t kMost = 32;
  if (const auto found = rows_of_.find(name); found != rows_of_.end()) {
    found->second += rows;
  } else if (rows_of_.size() < kMost) {
    rows_of_[name] = rows;
  } else {
    others_ += rows;
  }
}

void FieldCounts::add(const FieldCounts& other) {
  for (const auto& [name, rows] : other.rows_of_) add(name, rows);
  others_ += other.others_;
}

std::string FieldCounts::text() const {
  std::string out;
  for (const auto& [name, rows] : rows_of_) {
    out +=
        str_cat(out.empty() ? "\"" : ", \"", printable(name), "\" (", rows, rows == 1 ? " row)" : " rows)");
  }
  if (others_ > 0) out += ", and others";
  return out;
}

}  // namespace pesc
